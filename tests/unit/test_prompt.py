from __future__ import annotations

from dataclasses import dataclass

from inline_snapshot import snapshot

from reattach.prompt import compile_system


@dataclass(frozen=True)
class Block:
    label: str | None
    value: str
    description: str | None = None
    limit: int | None = None
    read_only: bool = False


def test_a_prompt_without_blocks_is_the_agents_own_text() -> None:
    assert compile_system("Be brief.", []) == "Be brief."


def test_blocks_follow_the_agents_text_with_all_that_they_say_of_themselves() -> None:
    blocks = [
        Block("human", "Ada\nlikes <tea>", "Who it is & what for", 5000),
        Block("persona", "Kind", read_only=True),
    ]
    assert compile_system("Be brief.", blocks) == snapshot(
        """\
Be brief.

<memory_blocks>
<block label="human" description="Who it is &amp; what for" chars_limit="5000">
Ada
likes <tea>
</block>
<block label="persona" read_only="true">
Kind
</block>
</memory_blocks>"""
    )


def test_blocks_stand_alone_where_an_agent_has_no_text() -> None:
    assert compile_system("", [Block(None, "x")]) == snapshot(
        """\
<memory_blocks>
<block label="">
x
</block>
</memory_blocks>"""
    )
