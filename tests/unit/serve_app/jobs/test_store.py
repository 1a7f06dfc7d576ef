import asyncio
from contextlib import suppress
from dataclasses import replace
from random import Random

import asyncpg
import pytest
from sqlalchemy import update

from models.errors import InvalidRequest, Overloaded, StoreAway
from models.music import AudioFormat, Made, Metas, MusicRequest, SongPlan, Track
from serve_app.jobs.forgetting import Forgotten
from serve_app.jobs.job import Idempotency, Job, Priority, Stats, Status, Terms
from serve_app.jobs.schema import jobs
from serve_app.jobs.store import IdempotencyConflict, JobStore, LeaseLost, QueueLimits
from tests.postgres import Postgres
from tests.unit.serve_app.jobs.promises import broken_counts, pass_time, rows_of

TURBO = "acestep-v15-turbo"
WORST_FIRST = (Priority.LOW, Priority.NORMAL, Priority.HIGH)
MADE = Made(
    tracks=(Track(ref="0" * 32 + ".mp3", audio_format=AudioFormat.MP3, seconds=10.0, size=1, sha256="00"),),
    plans=(SongPlan(caption="c", lyrics="l", language="en", metas=Metas(bpm=120), codes=(1, 2)),),
    dit_model=TURBO,
    lm_model=None,
    seconds_by_stage={"denoise": 0.5},
)


def request(**fields: object) -> MusicRequest:
    return MusicRequest.model_validate({"model": TURBO, "seeds": (1,), "prompt": "jazz", **fields})


async def read(store: JobStore, job: Job) -> Job:
    (seen,) = await store.get([job.id], job.owner)
    assert seen is not None
    return seen


async def claim(store: JobStore, lease_s: float = 60) -> Job:
    job = await store.claim("a worker", lease_s, [TURBO])
    assert job is not None
    return job


def made(*refs: str, size: int = 1) -> Made:
    (track,) = MADE.tracks
    tracks = tuple(track.model_copy(update={"ref": ref, "size": size}) for ref in refs)
    return MADE.model_copy(update={"tracks": tracks})


async def claim_new(store: JobStore) -> Job:
    await store.submit(request(), "")
    return await claim(store)


async def test_a_submitted_job_is_read_back_as_it_was_asked(store: JobStore) -> None:
    job = await store.submit(request(lyrics="Été 夏"), "")
    assert await read(store, job) == job
    assert (job.status, job.queue_position, job.request.lyrics) == (Status.QUEUED, 1, "Été 夏")


async def test_jobs_survive_the_process_that_took_them(url: str, limits: QueueLimits) -> None:
    first = await JobStore.open(url, limits)
    job = await first.submit(request(), "")
    await first.close()
    second = await JobStore.open(url, limits)
    assert await read(second, job) == job
    await second.close()


async def test_positions_count_those_ahead_and_the_job_itself(store: JobStore) -> None:
    jobs = [await store.submit(request(), "") for _ in range(3)]
    await claim(store)
    positions = [(await read(store, job)).queue_position for job in jobs]
    assert positions == [0, 1, 2]


async def test_a_full_queue_refuses_and_keeps_nothing(store: JobStore, limits: QueueLimits) -> None:
    for _ in range(limits.jobs):
        await store.submit(request(), "")
    with pytest.raises(Overloaded, match="queue is full"):
        await store.submit(request(), "")
    assert (await store.stats()).total == limits.jobs
    assert await store.retry_after_s() >= 1


async def test_of_many_who_submit_at_once_no_more_get_in_than_there_is_room(url: str, limits: QueueLimits) -> None:
    stores = [await JobStore.open(url, limits) for _ in range(3)]
    tries = [store.submit(request(), "") for store in stores for _ in range(4)]
    seen = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(one, Job) for one in seen) == limits.jobs
    assert sum(isinstance(one, Overloaded) for one in seen) == len(tries) - limits.jobs
    for store in stores:
        await store.close()


async def test_somebody_elses_job_is_as_unknown_as_one_that_never_was(store: JobStore) -> None:
    job = await store.submit(request(), "anna")
    assert await store.get([job.id, "never"], "bert") == [None, None]


async def test_the_oldest_job_that_these_models_can_make_is_claimed(store: JobStore) -> None:
    await store.submit(request(model="acestep-v15-base"), "")
    second = await store.submit(request(), "")
    await store.submit(request(), "")
    claimed = await claim(store)
    assert (claimed.id, claimed.status, claimed.attempt, claimed.fence) == (second.id, Status.RUNNING, 1, 1)


async def test_two_conductors_never_get_the_same_job(url: str, limits: QueueLimits) -> None:
    one, two = await JobStore.open(url, limits), await JobStore.open(url, limits)
    for _ in range(5):
        await one.submit(request(), "")
    claimed = await asyncio.gather(*(store.claim("w", 60, [TURBO]) for store in (one, two) for _ in range(4)))
    ids = [job.id for job in claimed if job is not None]
    assert len(ids) == len(set(ids)) == 5
    await one.close()
    await two.close()


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_a_job_that_another_is_about_to_claim_is_passed_over(store: JobStore, url: str) -> None:
    await store.submit(request(), "")
    second = await store.submit(request(), "")
    other = await asyncpg.connect(url)
    async with other.transaction():
        await other.execute("SELECT * FROM jobs ORDER BY turn, number LIMIT 1 FOR UPDATE")
        assert (await claim(store)).id == second.id
    await other.close()


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_a_store_outlives_its_database_and_no_job_is_lost(store: JobStore, postgres: Postgres) -> None:
    waiting = await store.submit(request(), "")
    held = await claim(store)
    postgres.stop()
    with pytest.raises(StoreAway):
        await store.submit(request(), "")
    postgres.start("fsync=off")
    assert await read(store, waiting) == held
    await store.succeed(held, MADE)
    assert (await read(store, held)).status == Status.SUCCEEDED


async def test_an_empty_queue_gives_nothing(store: JobStore) -> None:
    assert await store.claim("w", 60, [TURBO]) is None


async def test_a_job_whose_lease_ran_out_is_claimed_again_and_its_first_worker_is_refused(store: JobStore) -> None:
    await store.submit(request(), "")
    zombie = await claim(store, lease_s=-1)
    heir = await claim(store)
    assert (heir.id, heir.fence, heir.attempt) == (zombie.id, 2, 2)
    for write in (store.renew(zombie, 60), store.report(zombie, "plan", 0.5), store.succeed(zombie, MADE)):
        with pytest.raises(LeaseLost):
            await write
    await store.succeed(heir, MADE)
    assert (await read(store, heir)).made == MADE


async def test_a_job_whose_workers_are_lost_too_often_fails_and_says_so(store: JobStore, limits: QueueLimits) -> None:
    job = await store.submit(request(), "")
    for _ in range(limits.attempts):
        await claim(store, lease_s=-1)
    assert await store.claim("w", 60, [TURBO]) is None
    seen = await read(store, job)
    assert (seen.status, seen.error_code) == (Status.FAILED, "worker_lost")


async def test_a_job_ends_once(store: JobStore) -> None:
    await store.submit(request(), "")
    job = await claim(store)
    await store.succeed(job, MADE)
    for second_end in (store.fail(job, "bad_audio", "silence"), store.succeed(job, MADE), store.mark_cancelled(job)):
        with pytest.raises(LeaseLost):
            await second_end
    assert (await read(store, job)).status == Status.SUCCEEDED


async def test_a_failure_is_kept_with_its_reason(store: JobStore) -> None:
    await store.submit(request(), "")
    job = await claim(store)
    await store.fail(job, "bad_audio", "silence came out of the VAE")
    seen = await read(store, job)
    assert (seen.status, seen.error_code, seen.error_message) == (
        Status.FAILED,
        "bad_audio",
        "silence came out of the VAE",
    )
    assert seen.finished_at is not None


async def test_progress_never_falls(store: JobStore) -> None:
    await store.submit(request(), "")
    job = await claim(store)
    await store.report(job, "denoise", 0.6)
    await store.report(job, "denoise", 0.55)
    seen = await read(store, job)
    assert (seen.stage, seen.progress) == ("denoise", 0.6)


async def test_a_job_given_back_stands_where_it_stood(store: JobStore) -> None:
    first = await store.submit(request(), "")
    await store.submit(request(), "")
    await store.give_back(await claim(store))
    seen = await read(store, first)
    assert (seen.status, seen.queue_position, seen.attempt) == (Status.QUEUED, 1, 0)
    assert (await claim(store)).id == first.id


async def test_a_queued_job_is_cancelled_at_once_and_never_claimed(store: JobStore) -> None:
    job = await store.submit(request(), "anna")
    cancelled = await store.cancel(job.id, "anna")
    assert cancelled is not None
    assert cancelled.status == Status.CANCELLED
    assert await store.claim("w", 60, [TURBO]) is None


async def test_a_running_job_hears_of_its_cancelling_when_it_renews(store: JobStore) -> None:
    await store.submit(request(), "")
    job = await claim(store)
    assert not await store.renew(job, 60)
    await store.cancel(job.id, "")
    assert await store.renew(job, 60)
    await store.mark_cancelled(job)
    assert (await read(store, job)).status == Status.CANCELLED


async def test_nobody_cancels_somebody_elses_job(store: JobStore) -> None:
    job = await store.submit(request(), "anna")
    assert await store.cancel(job.id, "bert") is None
    assert (await read(store, job)).status == Status.QUEUED


async def test_an_ended_job_stays_as_it_ended_when_cancelled(store: JobStore) -> None:
    await store.submit(request(), "")
    job = await claim(store)
    await store.succeed(job, MADE)
    seen = await store.cancel(job.id, "")
    assert seen is not None
    assert seen.status == Status.SUCCEEDED


async def test_the_numbers_add_up(store: JobStore) -> None:
    for _ in range(4):
        await store.submit(request(), "")
    await store.succeed(await claim(store), MADE)
    await store.fail(await claim(store), "bad_audio", "silence")
    await claim(store)
    stats = await store.stats()
    assert (stats.total, stats.queued, stats.running, stats.succeeded, stats.failed) == (4, 1, 1, 1, 1)
    assert 0 <= stats.avg_job_seconds < 5


async def test_a_cancelled_job_whose_worker_is_lost_ends_cancelled(store: JobStore) -> None:
    job = await store.submit(request(), "")
    await claim(store, lease_s=-1)
    await store.cancel(job.id, "")
    assert await store.claim("another", 60, [TURBO]) is None
    assert (await read(store, job)).status == Status.CANCELLED


async def test_a_cancelled_job_that_is_given_back_ends_cancelled(store: JobStore) -> None:
    await store.submit(request(), "")
    job = await claim(store)
    await store.cancel(job.id, "")
    await store.give_back(job)
    seen = await read(store, job)
    assert (seen.status, seen.error_code) == (Status.CANCELLED, "cancelled")


async def test_a_better_priority_goes_first_and_every_worse_one_has_its_turn(store: JobStore) -> None:
    low, normal, high = [await store.submit(request(), "", Terms(priority=priority)) for priority in WORST_FIRST]
    assert [(await read(store, job)).queue_position for job in (low, normal, high)] == [3, 2, 1]
    assert (await claim(store)).id == high.id


async def test_a_job_of_low_priority_waits_no_longer_than_its_handicap(store: JobStore) -> None:
    low = await store.submit(request(), "", Terms(priority=Priority.LOW))
    (row,) = await rows_of(store)
    await pass_time(store, low, turn=row.turn - int(Priority.LOW.handicap_s * 1000) - 1)
    await store.submit(request(), "", Terms(priority=Priority.HIGH))
    assert (await claim(store)).id == low.id


async def test_one_owner_cannot_fill_the_queue_alone(url: str) -> None:
    store = await JobStore.open(url, QueueLimits(jobs=5, attempts=2, jobs_per_owner=2))
    for _ in range(2):
        await store.submit(request(), "anna")
    with pytest.raises(Overloaded, match="2 jobs of this key"):
        await store.submit(request(), "anna")
    await store.submit(request(), "bert")
    await claim(store)
    await store.submit(request(), "anna")
    assert (await store.stats()).total == 4
    with pytest.raises(Overloaded, match="1 jobs of this key"):
        await store.submit(request(), "bert", at_most=1)
    await store.submit(request(), "anna", at_most=3)
    await store.close()


async def test_a_request_sent_twice_under_one_key_is_one_job(store: JobStore) -> None:
    terms = Terms(idempotency=Idempotency("once", "a body"))
    first = await store.submit(request(), "anna", terms)
    again = await store.submit(request(seeds=(2,)), "anna", terms)
    assert again == first
    other = await store.submit(request(), "bert", terms)
    assert other.id != first.id
    with pytest.raises(IdempotencyConflict, match="'once'"):
        await store.submit(request(), "anna", Terms(idempotency=Idempotency("once", "another body")))
    assert (await store.stats()).total == 2


async def test_a_job_that_is_known_is_told_of_though_the_queue_is_full(store: JobStore, limits: QueueLimits) -> None:
    terms = Terms(idempotency=Idempotency("once", "a body"))
    first = await store.submit(request(), "", terms)
    for _ in range(limits.jobs - 1):
        await store.submit(request(), "")
    assert await store.submit(request(), "", terms) == first


async def test_a_request_sent_many_times_at_once_under_one_key_is_one_job(url: str, limits: QueueLimits) -> None:
    stores = [await JobStore.open(url, limits) for _ in range(3)]
    terms = Terms(idempotency=Idempotency("once", "a body"))
    seen = await asyncio.gather(*(store.submit(request(), "", terms) for store in stores for _ in range(3)))
    assert len({job.id for job in seen}) == 1
    for store in stores:
        await store.close()


@pytest.mark.parametrize("key", ["", "a" * 256, "line\nbreak"], ids=repr)
def test_an_idempotency_key_that_cannot_be_kept_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequest, match="1 to 255 printable"):
        Idempotency(key, "a body")


async def test_a_job_that_waits_past_its_deadline_fails(store: JobStore) -> None:
    late = await store.submit(request(), "", Terms(deadline_s=-1))
    early = await store.submit(request(), "", Terms(deadline_s=60))
    assert (await claim(store)).id == early.id
    seen = await read(store, late)
    assert (seen.status, seen.error_code, seen.queue_position) == (Status.FAILED, "deadline_exceeded", 0)
    assert seen.finished_at is not None


async def test_a_job_that_runs_past_its_deadline_fails_and_its_worker_is_refused(store: JobStore) -> None:
    job = await store.submit(request(), "", Terms(deadline_s=60))
    held = await claim(store)
    await pass_time(store, job, deadline=0.0)
    await store.reap()
    seen = await read(store, job)
    assert (seen.status, seen.error_code) == (Status.FAILED, "deadline_exceeded")
    with pytest.raises(LeaseLost):
        await store.renew(held, 60)


async def test_a_job_that_was_withdrawn_ends_cancelled_even_past_its_deadline(store: JobStore) -> None:
    job = await store.submit(request(), "", Terms(deadline_s=60))
    await claim(store)
    await store.cancel(job.id, "")
    await pass_time(store, job, deadline=0.0)
    await store.reap()
    assert (await read(store, job)).status == Status.CANCELLED


async def test_a_lost_job_waits_in_its_old_place_until_somebody_claims_it(store: JobStore) -> None:
    first = await store.submit(request(), "")
    await store.submit(request(), "")
    await claim(store, lease_s=-1)
    await store.reap()
    seen = await read(store, first)
    assert (seen.status, seen.queue_position, seen.losses, seen.attempt) == (Status.QUEUED, 1, 1, 1)


async def test_lost_workers_and_failed_songs_are_counted_apart(store: JobStore) -> None:
    await store.submit(request(), "")
    await store.submit(request(), "")
    lost = await claim(store, lease_s=-1)
    await store.give_back(await claim(store))
    await claim(store, lease_s=-1)
    await store.fail(await claim(store), "bad_audio", "silence")
    stats = await store.stats()
    assert (stats.failed, stats.failures) == (2, {"worker_lost": 1, "bad_audio": 1})
    assert (await read(store, lost)).losses == 2


async def test_what_ended_long_ago_is_forgotten_and_its_files_named(store: JobStore) -> None:
    jobs = [await store.submit(request(), "") for _ in range(4)]
    await store.succeed(await claim(store), MADE)
    await store.fail(await claim(store), "bad_audio", "silence")
    await claim(store)
    assert await store.forget(age_s=60) == Forgotten()
    assert await store.forget(age_s=-1) == Forgotten(2, (MADE.tracks[0].ref,))
    seen = await store.get([job.id for job in jobs], "")
    assert [job and job.status for job in seen] == [None, None, Status.RUNNING, Status.QUEUED]
    assert (await store.stats()).total == 2


async def test_no_more_is_forgotten_at_once_than_asked(store: JobStore) -> None:
    for _ in range(3):
        await store.submit(request(), "")
        await store.succeed(await claim(store), MADE)
    assert [(await store.forget(age_s=-1, at_most=2)).jobs for _ in range(3)] == [2, 1, 0]


async def test_a_forgotten_job_leaves_what_it_made_and_what_it_was_made_from(store: JobStore) -> None:
    audio = {"src_audio": "a.source", "reference_audio": "a.reference"}
    await store.submit(request(task_type="cover", **audio), "")
    await store.succeed(await claim(store), made("x", "y"))
    await store.fail(await claim_new(store), "bad_audio", "silence")
    forgotten = await store.forget(age_s=-1)
    assert forgotten.jobs == 2
    assert sorted(forgotten.files) == ["a.reference", "a.source", "x", "y"]
    assert await store.known_tracks(["x", "y"]) == set()
    assert await broken_counts(store) == []


async def test_the_oldest_tracks_go_with_their_jobs_until_the_rest_has_room(store: JobStore) -> None:
    ended = []
    for name in "abc":
        ended.append(await claim_new(store))
        await store.succeed(ended[-1], made(f"{name}1", f"{name}2", size=10))
    failed = await claim_new(store)
    await store.fail(failed, "bad_audio", "silence")
    assert await store.forget_oldest(60) == Forgotten()
    forgotten = await store.forget_oldest(59)
    assert (forgotten.jobs, sorted(forgotten.files)) == (1, ["a1", "a2"])
    assert (await store.forget_oldest(0, at_most=1)).jobs == 1
    left = await store.get([job.id for job in (*ended, failed)], "")
    assert [job and job.status for job in left] == [None, None, Status.SUCCEEDED, Status.FAILED]
    assert (await store.forget_oldest(0)).jobs == 1
    assert (await store.stats()).total == 1
    assert await broken_counts(store) == []


async def test_many_who_make_room_at_once_make_it_once(url: str) -> None:
    stores = [await JobStore.open(url, QueueLimits(jobs=50, attempts=2)) for _ in range(4)]
    for number in range(8):
        await stores[0].succeed(await claim_new(stores[0]), made(f"{number}"))
    forgotten = await asyncio.gather(*(store.forget_oldest(5) for store in stores))
    assert sorted(file for each in forgotten for file in each.files) == ["0", "1", "2"]
    for store in stores:
        await store.close()


async def test_tracks_of_jobs_are_told_from_others(store: JobStore) -> None:
    await store.succeed(await claim_new(store), made("x", "y"))
    assert await store.known_tracks([*(f"nobody's-{number}" for number in range(1200)), "x", "y"]) == {"x", "y"}
    assert await store.known_tracks([]) == set()


async def test_when_the_longest_running_job_began_is_told(store: JobStore) -> None:
    assert await store.running_since() is None
    first, second = await claim_new(store), await claim_new(store)
    assert await store.running_since() == first.started_at
    await store.succeed(first, MADE)
    assert await store.running_since() == second.started_at


async def test_when_a_job_will_be_done_is_told_from_how_long_others_took(store: JobStore) -> None:
    stats = Stats(total=9, queued=4, running=2, succeeded=3, failed=0, cancelled=0, queue_limit=9, avg_job_seconds=10.0)
    assert [stats.eta_s(place) for place in (1, 4)] == [15.0, 30.0]
    assert replace(stats, running=0).eta_s(1) == 20.0


async def test_places_are_right_in_a_queue_of_many_hours(store: JobStore, url: str) -> None:
    roomy = await JobStore.open(url, QueueLimits(jobs=100, attempts=2))
    jobs = [await roomy.submit(request(), "") for _ in range(40)]
    random = Random(7)
    for job in jobs:
        await pass_time(roomy, job, turn=int(1_795_000_000_000 + random.random() ** 4 * 3e9))
    assert await broken_counts(roomy) == []
    await roomy.close()


async def test_counts_hold_through_every_kind_of_change(store: JobStore) -> None:
    jobs = [await store.submit(request(), owner) for owner in ("anna", "bert", "anna", "bert", "anna")]
    await store.succeed(await claim(store), MADE)
    await store.fail(await claim(store), "bad_audio", "silence")
    await store.give_back(await claim(store))
    await store.cancel(jobs[3].id, "bert")
    await claim(store, lease_s=-1)
    await store.reap()
    assert await broken_counts(store) == []
    await store.forget(age_s=-1)
    assert await broken_counts(store) == []


async def test_many_who_do_everything_at_once_break_nothing_and_never_wait_for_each_other(url: str) -> None:
    roomy = QueueLimits(jobs=20, attempts=3, jobs_per_owner=15)
    stores = [await JobStore.open(url, roomy) for _ in range(3)]
    accepted: list[Job] = []
    ends: list[str] = []

    async def live(store: JobStore, random: Random) -> None:
        for _ in range(8):
            owner = random.choice(("anna", "bert"))
            terms = Terms(random.choice(WORST_FIRST), random.choice((None, 60.0, -1.0)))
            with suppress(Overloaded):
                accepted.append(await store.submit(request(), owner, terms))
            if accepted and random.random() < 0.3:
                job = random.choice(accepted)
                await store.cancel(job.id, job.owner)
            held = await store.claim("w", random.choice((60.0, -1.0)), [TURBO])
            with suppress(LeaseLost):
                if held is not None and random.random() < 0.3:
                    await store.give_back(held)
                elif held is not None:
                    await store.succeed(held, MADE)
                    ends.append(held.id)

    await asyncio.gather(*(live(store, Random(seed)) for seed in range(2) for store in stores))
    assert await broken_counts(stores[0]) == []
    rows = {row.id: row for row in await rows_of(stores[0])}
    assert rows.keys() == {job.id for job in accepted}
    assert sorted(ends) == sorted(id_ for id_, row in rows.items() if row.status == Status.SUCCEEDED)
    for store in stores:
        await store.close()


async def test_a_job_takes_the_id_it_is_given_and_ids_are_told_apart_from_others(store: JobStore) -> None:
    own = "0f8fad5b-d9cb-469f-a165-70867728950e"
    job = await store.submit(request(), "anna", id_=own)
    other = await store.submit(request(), "")
    strangers = [f"nobody-{number}" for number in range(1200)]
    assert (job.id, await read(store, job)) == (own, job)
    assert await store.known([*strangers, own, other.id]) == {own, other.id}
    assert await store.known([]) == set()


async def test_a_job_tells_what_happened_to_it_in_order(store: JobStore) -> None:
    job = await store.submit(request(), "")
    held = await claim(store)
    await store.report(held, "denoise", 0.6, 3, 8)
    await store.report(held, "denoise", 0.5, 2, 8)
    await store.succeed(held, MADE)
    told = await store.happened(job.id, "")
    assert told is not None
    assert told.is_over
    assert [(event.number, event.stage, event.progress, event.done) for event in told.events] == [
        (1, "queued", 0.0, 0),
        (2, "running", 0.0, 0),
        (3, "denoise", 0.6, 3),
        (4, "denoise", 0.6, 2),
        (5, "succeeded", 1.0, 0),
    ]
    later = await store.happened(job.id, "", after=3)
    assert later is not None
    assert later.events == told.events[3:]
    seen = await read(store, job)
    assert (seen.events, seen.number) == (5, told.job)


async def test_what_a_job_is_now_is_told_even_when_its_events_are_forgotten(store: JobStore) -> None:
    job = await store.submit(request(), "")
    held = await claim(store)
    await store.fail(held, "bad_audio", "silence")
    await store.forget_events(age_s=0)
    told = await store.happened(job.id, "", after=1)
    assert told is not None
    assert [(event.number, event.status) for event in told.events] == [(3, Status.FAILED)]


async def test_somebody_elses_job_tells_nothing(store: JobStore) -> None:
    job = await store.submit(request(), "anna")
    assert await store.happened(job.id, "bert") is None
    assert await store.list_jobs("bert") == []


async def test_the_events_of_a_forgotten_job_are_gone(store: JobStore) -> None:
    held = await claim_new(store)
    await store.succeed(held, MADE)
    await store.forget(age_s=0)
    assert await store.happened(held.id, "") is None
    assert await broken_counts(store) == []


async def test_jobs_are_listed_newest_first_and_page_by_page(store: JobStore) -> None:
    jobs = [await store.submit(request(), "anna") for _ in range(4)]
    await store.cancel(jobs[1].id, "anna")
    page = await store.list_jobs("anna", at_most=2)
    assert [job.id for job in page] == [jobs[3].id, jobs[2].id]
    rest = await store.list_jobs("anna", before=page[-1].number)
    assert [job.id for job in rest] == [jobs[1].id, jobs[0].id]
    assert [job.id for job in await store.list_jobs("anna", [Status.QUEUED, Status.FAILED])] == [
        jobs[index].id for index in (3, 2, 0)
    ]


async def test_a_result_is_used_again_only_by_its_owner_for_the_very_same_request(store: JobStore) -> None:
    reusing = Terms(reuse=True)
    held = await claim_new(store)
    assert (await store.submit(request(), "", reusing)).id != held.id  # not made yet
    await store.succeed(held, MADE)
    again = await store.submit(request(), "", reusing)
    assert (again.id, again.made) == (held.id, MADE)
    for other, owner in ((request(seeds=(2,)), ""), (request(), "anna")):
        assert (await store.submit(other, owner, reusing)).id != held.id
    assert (await store.submit(request(), "")).id != held.id


async def test_a_running_job_is_likely_to_take_what_its_progress_says(store: JobStore) -> None:
    held = await claim_new(store)
    await store.report(held, "denoise", 0.25)
    await pass_time(store, held, started_at=held.created_at - 30)
    seen = await read(store, held)
    stats = await store.stats()
    assert stats.eta_of(seen) == pytest.approx(90, abs=15)
    await store.succeed(held, MADE)
    assert stats.eta_of(await read(store, held)) is None


async def test_a_request_of_another_version_fails_alone_and_can_be_looked_at(store: JobStore) -> None:
    strange, good = await store.submit(request(), ""), await store.submit(request(), "")
    async with store._engine.begin() as connection:
        of_later = '{"model": "acestep-v15-turbo", "seeds": [1], "prompt": "jazz", "of_a_later_version": true}'
        await connection.execute(update(jobs).where(jobs.c.id == strange.id).values(request=of_later))
    assert (await read(store, strange)).request.prompt == "jazz"
    assert await store.claim("a worker", 60, [TURBO]) is None
    assert (await read(store, strange)).error_code == "unreadable_request"
    assert (await claim(store)).id == good.id
    assert await broken_counts(store) == []


async def test_events_of_long_ago_go_in_parts(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.jobs.store.EVENTS_AT_ONCE", 2)
    held = await claim_new(store)
    for step in range(5):
        await store.report(held, "denoise", step / 10)
    await store.forget_events(age_s=0)
    told = await store.happened(held.id, "")
    assert told is not None
    assert [event.number for event in told.events] == [7]
