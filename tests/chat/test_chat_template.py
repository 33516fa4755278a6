from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openzaya.chat import ChatTemplate, render_reply, render_tool_calls
from openzaya.chat.template import BUILT_IN_TEMPLATE

BUILT_IN = ChatTemplate.built_in()
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place, in °C",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
CALLS = [
    {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"place": "Zürich\nWest", "days": 2}}},
    {"id": "2", "type": "function", "function": {"name": "weather", "arguments": {"at": [1, {"a": None}], "b": True}}},
    {"id": "3", "type": "function", "function": {"name": "now", "arguments": {}}},
]
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one question": [{"role": "user", "content": "1 + 1?"}],
    "system": [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": " 1 + 1? "}],
    "several turns": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "reasoning_content": "one and one", "content": "2"},
        {"role": "system", "content": "Now be long."},
        {"role": "user", "content": [{"type": "text", "text": "and "}, {"type": "text", "text": "2 + 2?"}]},
        {"role": "assistant", "reasoning": "two\n\ntwos", "content": "4 <b>&amp;</b>"},
    ],
    "thought in content": [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "<think>\nearlier\n</think>\n\n2"},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "<think>now</think>4"},
    ],
    "tools": [
        {"role": "user", "content": "The weather?"},
        {"role": "assistant", "reasoning_content": "look", "content": "Let me see.", "tool_calls": CALLS},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "2", "content": '{"rain": "<none>"}'},
        {"role": "assistant", "content": None, "tool_calls": CALLS[:1]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ],
    "no user": [{"role": "system", "content": ""}, {"role": "assistant", "reasoning": "", "content": "Hello"}],
}


def test_one_question_renders_to_the_letter() -> None:
    template = ChatTemplate.built_in()
    question = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    prompt = "<bos><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    assert template.render(question) == prompt
    assert template.render(question, enable_thinking=False) == prompt + "<think>\n</think>\n\n"
    assert template.render(question, add_generation_prompt=False) == prompt.removesuffix("<|im_start|>assistant\n")


def test_reasoning_of_earlier_turns_is_left_out_and_of_the_last_turn_kept() -> None:
    prompt = ChatTemplate.built_in().render(CONVERSATIONS["several turns"], add_generation_prompt=False)
    assert "one and one" not in prompt
    assert "<|im_start|>assistant\n2<|im_end|>\n" in prompt
    assert prompt.endswith("<|im_start|>assistant\n<think>\ntwo\n\ntwos\n</think>\n\n4 <b>&amp;</b><|im_end|>\n")


def test_a_think_block_inside_content_is_reasoning() -> None:
    prompt = ChatTemplate.built_in().render(CONVERSATIONS["thought in content"], add_generation_prompt=False)
    assert "<|im_start|>assistant\n2<|im_end|>\n" in prompt
    assert prompt.endswith("<think>\nnow\n</think>\n\n4<|im_end|>\n")


@given(reasoning=st.text(max_size=20), content=st.text(max_size=20))
def test_a_reply_has_one_form_in_prompts_and_training_targets(reasoning: str, content: str) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": content, "reasoning": reasoning}]
    whole = BUILT_IN.render(messages, add_generation_prompt=False)
    assert whole == BUILT_IN.render(messages[:1]) + render_reply(reasoning, content)


def test_tools_calls_and_results_take_their_places() -> None:
    prompt = ChatTemplate.built_in().render(CONVERSATIONS["tools"], tools=[WEATHER])
    assert prompt.startswith("<bos><|im_start|>system\n# Tools\n")
    assert json.dumps(WEATHER, ensure_ascii=False) + "\n</tools>" in prompt
    assert "look\n</think>\n\nLet me see.\n" + render_tool_calls(CALLS) + "<|im_end|>\n<|im_start|>user\n" in prompt
    assert (
        "<|im_start|>user\n<zyphra_tool_response>\nsunny\n</zyphra_tool_response>\n"
        '<zyphra_tool_response>\n{"rain": "<none>"}\n</zyphra_tool_response><|im_end|>\n'
    ) in prompt
    assert "<|im_start|>assistant\n" + render_tool_calls(CALLS[:1]) + "<|im_end|>" in prompt


def test_a_system_text_stands_before_the_tools() -> None:
    prompt = ChatTemplate.built_in().render(CONVERSATIONS["system"], tools=[WEATHER])
    assert prompt.startswith("<bos><|im_start|>system\nBe brief.\n\n\n# Tools\n")


def test_arguments_as_json_text_render_like_objects() -> None:
    as_text = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in CALLS
    ]
    messages = CONVERSATIONS["tools"]
    rewritten = [messages[0], {**messages[1], "tool_calls": as_text}, *messages[2:]]
    template = ChatTemplate.built_in()
    assert template.render(rewritten, tools=[WEATHER]) == template.render(messages, tools=[WEATHER])


@pytest.mark.parametrize(
    ("last", "ending"),
    [
        ({"content": "The answer is "}, "assistant\nThe answer is "),
        ({"content": "4", "reasoning": "two\n"}, "assistant\n<think>\ntwo\n\n</think>\n\n4"),
        ({"content": "", "reasoning_content": "two"}, "assistant\n<think>\ntwo\n</think>\n\n"),
        ({"content": None, "reasoning_content": "so far"}, "assistant\n<think>\nso far"),
        ({"reasoning": ""}, "assistant\n<think>\n"),
        ({"content": "<think>\nso far"}, "assistant\n<think>\nso far"),
    ],
)
def test_a_final_message_is_continued_where_it_stops(last: dict[str, Any], ending: str) -> None:
    messages = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", **last}]
    assert ChatTemplate.built_in().render(messages, continue_final_message=True).endswith(ending)


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([{"role": "king", "content": "x"}], "role king is unknown"),
        ([{"content": "x"}], "message 0 has the role None"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "part of type 'image_url'"),
        ([{"role": "user", "content": 5}], "content of type int"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "not JSON"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}], "JSON object"),
    ],
)
def test_a_malformed_conversation_is_refused_with_its_fault(messages: list[dict[str, Any]], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ChatTemplate.built_in().render(messages)


@pytest.mark.parametrize("messages", [[], [{"role": "assistant"}]])
def test_nothing_to_continue_is_refused(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="continue"):
        ChatTemplate.built_in().render(messages, continue_final_message=True)


def test_a_template_that_leaves_the_final_message_out_cannot_continue_it() -> None:
    first_only = ChatTemplate("{{ messages[0].content }}")
    with pytest.raises(ValueError, match="does not write the content of the final message"):
        first_only.render(
            [{"role": "user", "content": "\ue000"}, {"role": "assistant", "content": "x"}], continue_final_message=True
        )


def test_the_folder_decides_which_template_is_used(tokenizer_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tokenizer_folder, folder)
    assert ChatTemplate.from_folder(folder).source == BUILT_IN_TEMPLATE
    (folder / "chat_template.jinja").unlink()
    assert ChatTemplate.from_folder(folder).source == BUILT_IN_TEMPLATE
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "{{ bos_token }}default"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    assert ChatTemplate.from_folder(folder).render([]) == "<bos>default"
    (folder / "chat_template.jinja").write_text("{% generation %}file{% endgeneration %}{{ eos_token }}")
    assert ChatTemplate.from_folder(folder).render([]) == "file<|im_end|>"


def test_a_template_that_does_not_compile_is_named(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ValueError, match=r"chat_template.jinja does not compile \(line 1"):
        ChatTemplate.from_folder(tmp_path)


def test_a_template_cannot_leave_its_sandbox() -> None:
    with pytest.raises(ValueError, match="cannot render"):
        ChatTemplate("{{ messages.__class__.__mro__ }}").render([{"role": "user"}])
    with pytest.raises(ValueError, match="cannot render"):
        ChatTemplate("{{ messages.append(1) }}").render([])


def test_json_in_a_prompt_keeps_its_characters() -> None:
    assert ChatTemplate("{{ messages[0].content | tojson }}").render([{"role": "u", "content": "<é&'>"}]) == '"<é&\'>"'


@pytest.fixture(scope="session")
def theirs(tokenizer_folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("tools", [[], [WEATHER]], ids=["plain", "tools"])
@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("prompted", [True, False])
def test_transformers_renders_the_shipped_template_alike(
    theirs: Any, name: str, tools: list[dict[str, Any]], thinking: bool, prompted: bool
) -> None:
    ours = ChatTemplate.built_in().render(
        CONVERSATIONS[name], tools=tools, enable_thinking=thinking, add_generation_prompt=prompted
    )
    assert ours == theirs.apply_chat_template(
        CONVERSATIONS[name],
        tools=tools or None,
        enable_thinking=thinking,
        add_generation_prompt=prompted,
        tokenize=False,
    )


roles = st.sampled_from(["system", "user", "assistant", "tool"])
messages = st.lists(
    st.fixed_dictionaries({"role": roles, "content": st.text(max_size=8)}, optional={"reasoning": st.text(max_size=8)}),
    min_size=1,
    max_size=6,
)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=50)
@given(conversation=messages)
def test_transformers_renders_any_conversation_alike(theirs: Any, conversation: list[dict[str, Any]]) -> None:
    ours = BUILT_IN.render(conversation)
    assert ours == theirs.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)


def test_transformers_continues_a_final_message_alike(theirs: Any) -> None:
    conversation = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "reasoning_content": "two twos", "content": "The answer is"},
    ]
    ours = ChatTemplate.built_in().render(conversation, continue_final_message=True)
    assert ours == theirs.apply_chat_template(conversation, continue_final_message=True, tokenize=False)
