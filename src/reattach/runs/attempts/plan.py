"""The decisions about a run that are made when it is sent, as its record keeps them."""

import msgspec
import structlog

from reattach.agent.turns import TurnPlan
from reattach.runs.representation import Representation

logger = structlog.get_logger(__name__)


class RunPlan(msgspec.Struct, frozen=True):
    """The data that a process needs, beside the run's messages and log, to continue the run."""

    turn: TurnPlan
    representation: Representation

    def encode(self) -> str:
        return msgspec.json.encode(self).decode()


_DECODER = msgspec.json.Decoder(RunPlan)


def decode_plan(text: str | None, run_id: str) -> RunPlan | None:
    """Return the plan; None if there is none, or if another version wrote one that is unknown."""
    if text is None:
        return None
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        logger.error("plan of a run cannot be read", run_id=run_id, reason=str(error))  # noqa: TRY400
        return None
