"""The API of the v1 model's "gradio compatible" server, answered by a 1.5 model."""
