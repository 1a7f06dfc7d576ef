"""The files that jobs made, so that they can be counted, and those that no job made be found."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

READ_AT_ONCE = 500


def upgrade() -> None:
    tracks = op.create_table(
        "tracks",
        sa.Column("job", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("ref", sa.String(64), primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
    )
    op.create_index("tracks_by_ref", "tracks", ["ref"])
    some = "SELECT number, made FROM jobs WHERE made IS NOT NULL AND number > :last ORDER BY number LIMIT :most"
    page, last = sa.text(some), 0
    while rows := op.get_bind().execute(page, {"last": last, "most": READ_AT_ONCE}).all():
        last = rows[-1].number
        made = [(row.number, track) for row in rows for track in json.loads(row.made)["tracks"]]
        op.bulk_insert(tracks, [{"job": number, "ref": track["ref"], "size": track["size"]} for number, track in made])
