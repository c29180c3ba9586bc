"""A conversation computes only what is new in it, and its answers are those of a fresh start, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from llmcli import engine as engines
from llmcli.chat import Chat
from llmcli.engine import Engine
from llmcli.errors import ContextOverflow, InputError, Stopped, UsageError
from llmcli.generate import Settings, Step, generate
from llmcli.past import Past

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
TRIMMED = PLAIN.replace("m.content", "m.content | trim")
WITHOUT_FIRST_WORDS = PLAIN.replace("m.content", "m.content[9:] if m.role == 'assistant' else m.content")


@pytest.fixture
def demo() -> Iterator[Engine]:
    with engines.opened("demo", context=300, texts=2) as engine:
        engine.templates = {"default": PLAIN}
        yield engine


@pytest.fixture
def chat(demo: Engine) -> Iterator[Chat]:
    found = Chat(demo)
    yield found
    found.close()


def settings(engine: Engine, **more: object) -> Settings:
    """Answers of 12 tokens, whatever the model wants."""
    never = dict.fromkeys(engine.end_ids, -math.inf)
    return Settings(temperature=0.8, seed=4, max_tokens=12, logit_bias=never).changed(more)


def from_scratch(chat: Chat, steps: list[Step], chosen: Settings) -> list[Step]:
    """The same answer by a past that knows nothing, from the tokens that the chat's answer was computed behind."""
    made = [step.id for step in steps if step.id is not None]
    ids = chat._past.ids[: chat.prompt_tokens]
    assert len(ids) == chat.prompt_tokens and chat._past.ids[chat.prompt_tokens :] == made[:-1]
    with Past(chat.engine) as fresh:
        return list(generate(chat.engine, ids, chosen, past=fresh))


def one_letter(engine: Engine) -> Settings:
    """Makes the model write a single letter, again and again, which no tokenizer would cut into letters."""
    letter = engine.tokenizer.encode("e", bos=False)
    assert len(letter) == 1 and len(engine.tokenizer.encode("e" * 12, bos=False)) < 12
    return Settings(temperature=0, max_tokens=12, logit_bias={letter[0]: 1e6})


def test_only_new_tokens_are_computed(chat: Chat) -> None:
    chosen = settings(chat.engine)
    for number, question in enumerate(["Once upon a time", "The dog was", "They", "She"]):
        known = chat.used
        steps = list(chat.answer(question, chosen, probs=1))
        assert chat.computed == chat.prompt_tokens - known
        assert chat.computed < 20 or not number
        assert list(from_scratch(chat, steps, chosen)) == [Step(**{**vars(step), "top": []}) for step in steps]
    assert chat.turns == 4 and [message["role"] for message in chat.messages] == ["user", "assistant"] * 4


def test_an_answer_keeps_the_tokens_that_were_written(chat: Chat) -> None:
    """Encoded again, they would be others, and everything from there on would be computed again."""
    assert "".join(step.text for step in chat.answer("Hello", one_letter(chat.engine))) == "e" * 12
    known = chat.used
    list(chat.answer("Hello", one_letter(chat.engine)))
    encoded = chat.engine.tokenizer.encode("\n<user>Hello\n<assistant>", bos=False)
    assert chat._past.ids[known + 1 : chat.prompt_tokens] == encoded
    assert chat.computed == chat.prompt_tokens - known == len(encoded) + 1


@pytest.mark.parametrize(("template", "kept"), [(TRIMMED, True), (WITHOUT_FIRST_WORDS, False)])
def test_what_a_template_rewrites_is_encoded(demo: Engine, template: str, kept: bool) -> None:
    """An answer that the next prompt has in other words is encoded as it stands there; what is before it stays."""
    demo.templates = {"default": template}
    chat = Chat(demo)
    list(chat.answer("Hello", one_letter(demo)))
    first = chat.prompt_tokens
    steps = list(chat.answer("Hello", one_letter(demo)))
    assert chat.computed == chat.prompt_tokens - (first + 11 if kept else first)
    rewritten = "e" * 12 if kept else "eee"
    assert chat.engine.tokenizer.decode(chat._past.ids[first : chat.prompt_tokens]).startswith(rewritten + "\n<user>")
    assert from_scratch(chat, steps, one_letter(demo)) == steps
    chat.close()


def test_a_base_model_continues_the_text(demo: Engine) -> None:
    demo.templates = {}
    chat = Chat(demo)
    first = "".join(step.text for step in chat.answer("Once upon a time", settings(demo)))
    known = chat.used
    list(chat.answer("The dog", settings(demo)))
    prompt = chat._past.ids[: chat.prompt_tokens]
    assert demo.tokenizer.decode(prompt) == f"Once upon a time{first}\nThe dog"
    assert prompt[0] == demo.tokenizer.bos_id and demo.tokenizer.bos_id not in prompt[1:]
    assert chat.computed == chat.prompt_tokens - known
    chat.close()


def test_raw_leaves_the_template_out(demo: Engine) -> None:
    chat = Chat(demo, raw=True)
    list(chat.answer("Once", settings(demo)))
    assert demo.tokenizer.decode(chat._past.ids[: chat.prompt_tokens]) == "Once"
    chat.close()


def test_regenerate_and_undo_compute_almost_nothing(chat: Chat) -> None:
    list(chat.answer("Once upon a time", settings(chat.engine)))
    list(chat.answer("Then", settings(chat.engine)))
    before, prompt = chat.messages, chat.prompt_tokens
    list(chat.regenerate(settings(chat.engine, seed=9)))
    assert (chat.prompt_tokens, chat.computed) == (prompt, 1)
    assert chat.messages[:3] == before[:3] and chat.messages[3] != before[3]
    assert chat.used is not None
    assert chat.undo() == "Then" and chat.messages == before[:2] and chat.used is None
    list(chat.answer("Then", settings(chat.engine)))
    assert chat.messages == before and chat.computed == 1
    chat.undo(), chat.undo()
    with pytest.raises(UsageError):
        chat.undo()


def test_an_answer_that_is_stopped_ends_there(chat: Chat) -> None:
    steps = chat.answer("Once", settings(chat.engine))
    shown = "".join(next(steps).text for _ in range(5))
    steps.close()
    assert chat.messages[-1] == {"role": "assistant", "content": shown}
    known = chat.used
    list(chat.answer("Then", settings(chat.engine)))
    assert chat.computed == chat.prompt_tokens - known


def test_what_fails_before_the_first_word_changes_nothing(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    list(chat.answer("Once", settings(chat.engine)))
    before = list(chat.messages)
    with pytest.raises(ContextOverflow):
        list(chat.answer("word " * 400, settings(chat.engine)))
    with pytest.raises(InputError):
        list(chat.answer("\ud800", settings(chat.engine)))
    with monkeypatch.context() as patch:
        patch.setattr(chat.engine._runner, "run", lambda batch: (_ for _ in ()).throw(Stopped("stopped")))
        for steps in (chat.answer("Then", settings(chat.engine)), chat.regenerate(settings(chat.engine))):
            with pytest.raises(Stopped):
                list(steps)
    assert chat.messages == before
    list(chat.answer("Then", settings(chat.engine)))
    assert chat.turns == 2


def test_stop_strings_end_an_answer_that_is_then_encoded(chat: Chat) -> None:
    """The tokens that were written have more text than the answer."""
    whole = "".join(step.text for step in chat.answer("Once", settings(chat.engine)))
    chat.undo()
    stop = whole[5:9]
    list(chat.answer("Once", settings(chat.engine, stop=(stop,))))
    assert chat.messages[-1]["content"] == whole[: whole.index(stop)]
    list(chat.answer("Then", settings(chat.engine)))
    assert f"<assistant>{whole[: whole.index(stop)]}\n<user>Then" in chat.engine.tokenizer.decode(chat._past.ids)


def test_the_oldest_turns_go_when_there_is_no_room(chat: Chat) -> None:
    chat.system = "Be kind."
    assert chat.too_many("Hello") == 0
    for number in range(9):
        list(chat.answer(f"{number} and so on", settings(chat.engine)))
    assert chat.too_many("Hello") == 0
    long = "word " * 40
    turns = chat.too_many(long)
    assert 0 < turns < 9
    chat.forget(turns)
    assert chat.too_many(long) == 0 and chat.system == "Be kind." and chat.messages[1]["content"] == f"{turns} and so on"
    list(chat.answer(long, settings(chat.engine)))
    assert chat.engine.context - chat.prompt_tokens >= chat.engine.context // 4
    assert chat.too_many("word " * 1000) == chat.turns, "what never fits is refused when it is asked"
    assert chat.too_many() == 0


def test_markup_of_a_user_is_text(demo: Engine) -> None:
    """Also when its turn is old, and encoded in another piece."""
    end = demo.tokenizer.eos
    chat = Chat(demo)
    for _ in range(2):
        list(chat.answer(f"Hello {end}", settings(demo)))
    assert demo.tokenizer.eos_id not in chat._past.ids
    assert demo.tokenizer.decode(chat._past.ids).count(str(end)) == 2
    chat.close()


@pytest.mark.parametrize("roles", [["user"], ["assistant", "user"], ["user", "user"], ["user", "assistant", "system"]])
def test_messages_are_whole_turns(demo: Engine, roles: list[str]) -> None:
    with pytest.raises(UsageError):
        Chat(demo, [{"role": role, "content": ""} for role in roles])


def test_a_conversation_goes_on_with_another_engine(chat: Chat) -> None:
    list(chat.answer("Once", settings(chat.engine)))
    with engines.opened("demo", context=200) as other:
        other.templates = {"default": PLAIN}
        again = Chat(other, chat.messages)
        one = list(again.answer("Then", settings(other)))
        assert np.isfinite([step.logprob for step in one]).all() and again.turns == 2
        again.close()


def test_thoughts_are_beside_the_answer(demo: Engine) -> None:
    """So that a template leaves them out of later prompts, or not, as it was written to."""
    demo.templates = {"default": PLAIN + "{# <think> #}"}
    chat = Chat(demo)
    list(chat.answer("Hello", settings(demo)))
    assert "reasoning_content" not in chat.messages[-1]
    answer = chat._answered("<think>\nIt is late.\n</think>\n\nGood evening.")
    assert answer == {"role": "assistant", "content": "Good evening.", "reasoning_content": "It is late."}
    chat.close()
