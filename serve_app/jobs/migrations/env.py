"""Run by alembic, inside the transaction of `serve_app.jobs.database`."""

from alembic import context

from serve_app.jobs.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
