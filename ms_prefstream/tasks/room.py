"""Whether a task's lengths leave room for the template and a token of response."""

from __future__ import annotations

from ms_prefstream.encode.build import least_length
from ms_prefstream.encode.encoder import ConversationEncoder
from ms_prefstream.errors import OptionError
from ms_prefstream.tasks.base import Task


def check_room(task: Task, encoder: ConversationEncoder) -> None:
    """Refuse lengths in which no row could keep a token of its response.

    Raises:
        OptionError: Names the least length that is of any use.
    """
    bare = least_length(encoder)
    least = bare + (1 if task.layout == "reward_token" else 0)
    if task.length < least:
        raise OptionError(
            f"{type(task).__name__}: {'seq_length' if task.name == 'rlhf' else 'max_length'} is {task.length}, but the "
            f"template takes {least} tokens with a single one of response. Raise it to {least} or, better, to what "
            "your rows need."
        )
    prompt = getattr(task, "max_prompt_length", None)
    if prompt is not None and prompt < bare - 1:
        raise OptionError(
            f"{type(task).__name__}: max_prompt_length is {prompt}, but the template takes {bare - 1} for an empty one."
            f" Raise it to {bare - 1} or, better, to what your rows need."
        )
