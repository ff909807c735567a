from __future__ import annotations

from dataclasses import dataclass

from inline_snapshot import snapshot

from reattach.prompt import blocks_in, compile_system


@dataclass(frozen=True)
class Block:
    label: str | None
    value: str
    description: str | None = None
    limit: int | None = None
    read_only: bool = False


def compiled(system: str, blocks: list[Block]) -> str:
    return compile_system(system, blocks, agent_id="agent-1", conversation_id=None)


def test_a_prompt_without_blocks_is_the_agents_own_text_and_where_it_is() -> None:
    assert compiled("Be brief.", []) == snapshot(
        """\
Be brief.

<metadata>
agent_id: agent-1
conversation_id: default
</metadata>"""
    )
    named = compile_system("", [], agent_id="agent-1", conversation_id="conv-1")
    assert "conversation_id: conv-1" in named


def test_blocks_of_a_conversation_go_before_those_of_the_agent() -> None:
    human, persona, own, other = (
        Block("human", "Ada"),
        Block("persona", "Kind"),
        Block("human", "Grace"),
        Block("other", "x"),
    )
    assert blocks_in([human, persona], [own, other]) == [own, persona, other]
    assert blocks_in([human], []) == [human]


def test_blocks_follow_the_agents_text_with_all_that_they_say_of_themselves() -> None:
    blocks = [
        Block("human", "Ada\nlikes <tea>", "Who it is & what for", 5000),
        Block("persona", "Kind", read_only=True),
    ]
    assert compiled("Be brief.", blocks) == snapshot(
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
</memory_blocks>

<metadata>
agent_id: agent-1
conversation_id: default
</metadata>"""
    )


def test_blocks_stand_alone_where_an_agent_has_no_text() -> None:
    assert compiled("", [Block(None, "x")]) == snapshot(
        """\
<memory_blocks>
<block label="">
x
</block>
</memory_blocks>

<metadata>
agent_id: agent-1
conversation_id: default
</metadata>"""
    )
