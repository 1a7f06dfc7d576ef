"""Every error this project raises on purpose.

AceError
├── RequestError             the caller can mend it
│   ├── InvalidRequest       a value out of range, a combination that makes no sense
│   ├── UnknownModel         a checkpoint this server does not run
│   ├── UnknownAdapter       a LoRA this server does not have
│   ├── TooLong              more audio or text than this deployment takes
│   └── InvalidAudio         source or reference audio that cannot be read
├── Overloaded               no room now; try again
├── StoreAway                the job database cannot be used now; what was asked of it may have been done
├── Cancelled                the caller withdrew the job
├── DeadlineExceeded         the time the caller allowed is over
└── EngineError              ours to mend; details stay in the log
    ├── EngineDied           an engine that will not answer again; its replica is replaced
    ├── CheckpointError      weights that are absent, incomplete or of another shape
    ├── OutOfMemory          one song alone does not fit on the device
    ├── BadLatents           NaN, infinity or zeros came out of the DiT
    ├── BadAudio             NaN, infinity or silence came out of the VAE
    ├── BadPlan              the LM's answer cannot be used
    └── WorkerLost           the process that ran the job died too often

An error takes one message argument only, so that it survives the trip between processes.
"""


class AceError(Exception):
    """Base of all errors; `code` is a stable word for clients, `is_public` says whether the message may reach them."""

    code = "internal"
    is_public = False

    def __init__(self, message: str) -> None:
        super().__init__(message)

    @property
    def message(self) -> str:
        return str(self.args[0])

    @property
    def public_message(self) -> str:
        """What a client may read."""
        return self.message if self.is_public else f"the server failed to make this song ({self.code})"


class RequestError(AceError):
    code = "invalid_request"
    is_public = True


class InvalidRequest(RequestError):
    pass


class UnknownModel(RequestError):
    code = "unknown_model"


class UnknownAdapter(RequestError):
    code = "unknown_adapter"


class TooLong(RequestError):
    code = "too_long"


class InvalidAudio(RequestError):
    code = "invalid_audio"


class Overloaded(AceError):
    code = "overloaded"
    is_public = True


class StoreAway(AceError):
    code = "store_away"
    is_public = True


class Cancelled(AceError):
    code = "cancelled"
    is_public = True


class DeadlineExceeded(AceError):
    code = "deadline_exceeded"
    is_public = True


class EngineError(AceError):
    code = "engine_error"


class EngineDied(EngineError):
    code = "engine_died"


class CheckpointError(EngineError):
    code = "checkpoint_error"


class OutOfMemory(EngineError):
    code = "out_of_memory"
    is_public = True


class BadLatents(EngineError):
    code = "bad_latents"
    is_public = True


class BadAudio(EngineError):
    code = "bad_audio"
    is_public = True


class BadPlan(EngineError):
    code = "bad_plan"
    is_public = True


class WorkerLost(EngineError):
    code = "worker_lost"
    is_public = True
