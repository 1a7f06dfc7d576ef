"""The current ACE-Step API: `/release_task`, `/query_result`, `/v1/audio` and what belongs to them."""
