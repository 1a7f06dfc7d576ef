"""Makes music with ACE-Step 1.5: plan, denoise, decode. Knows neither HTTP nor Ray."""
