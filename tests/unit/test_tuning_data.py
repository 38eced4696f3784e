"""What is learned of a conversation, and that nothing of one reaches another."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2.chat.prepare import prepare_conversations
from gpt2.chat.template import conversation_ids
from gpt2.config.schema import DataSettings
from gpt2.corpus.conversations import open_conversations
from gpt2.corpus.fields import Fields, Message
from gpt2.corpus.prepare import Prepared, open_prepared
from gpt2.corpus.shards import TokenShards
from gpt2.data.conversations import ConversationLoader, ConversationRows, answer_targets, conversation_batches
from gpt2.data.dataset import IGNORED
from gpt2.errors import DataError, UserError
from gpt2.files import write_json
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.tokenizer.bpe import BytePairTokenizer
from gpt2.tokenizer.roles import ROLE_SPELLINGS, RoleTokenizer
from gpt2.tokenizer.store import load_tokenizer
from gpt2.training.loss import NextTokenLoss

PLAIN = BytePairTokenizer("bytes", [bytes([byte]) for byte in range(256)])
BYTES = RoleTokenizer(PLAIN)
SYSTEM, USER, ASSISTANT, END = BYTES.roles.all
CONTEXT = 64


def table(folder: Path, rows: int = 60, longest: int = 12) -> Path:
    lines = [f"{'q' * (1 + n % 7)}{n},{'a' * (1 + n * 5 % longest)}{n}" for n in range(rows)]
    path = folder / "faq.csv"
    path.write_text("question,answer\n" + "\n".join(lines) + "\n")
    return path


def prepared(folder: Path, path: Path, context: int = CONTEXT, **settings: object) -> Prepared:
    data = DataSettings.model_validate(settings)
    return prepare_conversations(open_conversations([str(path)], Fields(), data), None, BYTES, context, data, folder)


def rows_of(made: Prepared, part: str = "train") -> ConversationRows:
    return ConversationRows(TokenShards(made.folder, part), BYTES.roles)


# --- the marks -----------------------------------------------------------------------------------------------------


def test_marks_stand_behind_the_plain_ids_and_survive_their_files(tmp_path: Path) -> None:
    assert BYTES.roles.all == (257, 258, 259, 260)
    assert (BYTES.vocab_size, BYTES.end_of_text) == (261, 256)
    assert BYTES.decode([104, SYSTEM, 105, END, 256]) == PLAIN.decode([104, 105])
    for name, value in BYTES.to_files(64).items():
        write_json(tmp_path / name, value)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, RoleTokenizer)
    assert again.roles == BYTES.roles
    value = BYTES.to_files(64)["tokenizer.json"]
    value["added_tokens"][2]["content"] = "<|tool|>"
    write_json(tmp_path / "tokenizer.json", value)
    with pytest.raises(UserError, match="tool"):
        load_tokenizer(tmp_path)


@given(st.text() | st.lists(st.sampled_from(ROLE_SPELLINGS), max_size=5).map("".join))
def test_no_text_is_ever_a_mark(text: str) -> None:
    ids = conversation_ids([Message("user", text), Message("assistant", text)], BYTES)
    assert [i for i in ids if i > 256] == [USER, END, ASSISTANT, END]


# --- what is learned -----------------------------------------------------------------------------------------------


def test_answers_and_their_ends_are_learned_and_nothing_else() -> None:
    said = [("system", "S"), ("user", "ab"), ("assistant", "cd"), ("user", "e"), ("assistant", "f")]
    ids = np.array(conversation_ids([Message(role, text) for role, text in said], BYTES))  # type: ignore[arg-type]
    targets = answer_targets(ids, BYTES.roles)
    learned = [(BYTES.decode([ids[i]]) or int(ids[i]), int(t)) for i, t in enumerate(targets) if t != IGNORED]
    c, d, f = (int(PLAIN.encode(letter)[0]) for letter in "cdf")
    assert learned == [(ASSISTANT, c), ("c", d), ("d", END), (ASSISTANT, f), ("f", END)]


def test_a_changed_token_in_a_question_changes_which_terms_count_in_no_way_and_none_of_their_targets() -> None:
    """The loss has the same terms: the same places and the same targets. Nothing of the question is one."""
    one, other = (
        np.array(conversation_ids([Message("user", asked), Message("assistant", "same")], BYTES))
        for asked in ("what?", "whom?")
    )
    assert (one != other).any()
    assert np.array_equal(answer_targets(one, BYTES.roles), answer_targets(other, BYTES.roles))


def test_the_question_gets_no_gradient_as_a_target() -> None:
    """With the attention cut off, the loss cannot depend on the question at all: no term is one of its tokens."""
    model = tiny()
    losses = []
    for asked in ("what?", "whom?"):
        ids = np.array(conversation_ids([Message("user", asked), Message("assistant", "same")], BYTES))
        inputs, targets = torch.tensor(ids[None, :-1]), torch.tensor(answer_targets(ids, BYTES.roles)[None])
        with torch.no_grad():
            for block in model.h:
                block.attn.c_proj.weight.zero_()  # type: ignore[union-attr]
                block.attn.c_proj.bias.zero_()  # type: ignore[union-attr]
        losses.append(NextTokenLoss(model)(inputs, targets)[0].item())
    assert losses[0] == losses[1]


def tiny() -> GPT2:
    model = GPT2(GPT2Config(BYTES.vocab_size, CONTEXT, n_layer=2, n_head=2, n_embd=16))
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval()


def test_conversations_of_a_batch_do_not_see_each_other(tmp_path: Path) -> None:
    """The gradient of one row's loss with respect to the inputs of another, and of its own filling, is exactly 0."""
    rows = rows_of(prepared(tmp_path, table(tmp_path)))
    inputs, targets = rows.batch(np.array([3, int(np.argmax(rows.lengths))]))
    assert (targets[0] == IGNORED).sum() > (inputs[0] == END).sum()  # the shorter one is filled up
    model = tiny()
    vectors = model.wte(inputs).detach().requires_grad_()
    model.wte.register_forward_hook(lambda *_: vectors)
    for row in (0, 1):
        loss, _ = NextTokenLoss(model)(inputs, torch.where(torch.arange(2)[:, None] == row, targets, IGNORED))
        (gradient,) = torch.autograd.grad(loss, vectors)
        own = int(rows.lengths[3 if row == 0 else int(np.argmax(rows.lengths))])
        assert gradient[row, :own].abs().sum() > 0
        assert not gradient[1 - row].any()
        assert not gradient[row, own:].any()


def test_a_row_gives_the_same_loss_alone_and_among_longer_ones(tmp_path: Path) -> None:
    rows = rows_of(prepared(tmp_path, table(tmp_path)))
    objective = NextTokenLoss(tiny())
    chosen = np.arange(6)
    together, counted = objective(*rows.batch(chosen))
    alone = [objective(*rows.batch(chosen[i : i + 1])) for i in chosen]
    torch.testing.assert_close(together, sum(loss for loss, _ in alone))
    assert counted == sum(count for _, count in alone)


# --- on disk -------------------------------------------------------------------------------------------------------


def test_every_conversation_is_on_one_side_and_comes_back(tmp_path: Path) -> None:
    made = prepared(tmp_path, table(tmp_path), validation=0.2)
    texts = [[BYTES.decode(rows.ids(i)) for i in range(len(rows))] for rows in map(rows_of, [made] * 2, PARTS)]
    assert len(texts[1]) == 12
    assert len(texts[0]) == 48
    assert sorted(texts[0] + texts[1]) == sorted(
        f"{'q' * (1 + n % 7)}{n}{'a' * (1 + n * 5 % 12)}{n}" for n in range(60)
    )
    again = prepared(tmp_path, tmp_path / "faq.csv", validation=0.2)
    assert again.reused
    assert isinstance(open_prepared(made.folder).tokenizer, RoleTokenizer)


PARTS = ("train", "validation")


def test_long_ones_are_cut_or_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    long, longer = "x" * 70, "y" * 62
    rows = [f"a{n},b{n}" for n in range(40)] + [f"short{n},{long}" for n in range(30)] + [f"{longer},c"] * 2
    path.write_text("question,answer\n" + "\n".join(rows) + "\n")
    made = prepared(tmp_path, path)
    assert made.stats.counts == {
        "cut at the context's end": 30,
        "left out, as their answer would begin beyond it": 2,
    }
    assert max(rows_of(made, part).lengths.max() for part in PARTS) == CONTEXT
    with pytest.raises(DataError, match="No conversation is left"):
        prepared(tmp_path, path, context=4)


def test_equal_conversations_are_on_one_side(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("question,answer\n" + "".join(f"q{n % 30},a{n % 30}\n" for n in range(90)))
    made = prepared(tmp_path, path, validation=0.3)
    sides = [{BYTES.decode(rows.ids(i)) for i in range(len(rows))} for rows in (rows_of(made, part) for part in PARTS)]
    assert not sides[0] & sides[1]


def test_one_conversation_is_too_few(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("question,answer\na,b\na,b\n")
    with pytest.raises(DataError, match="only 1 conversation"):
        prepared(tmp_path, path)


# --- the order -----------------------------------------------------------------------------------------------------


def first_words(batch: tuple[torch.Tensor, torch.Tensor]) -> list[str]:
    inputs, _ = batch
    return [BYTES.decode([i for i in row.tolist() if i != 0 and i < 256]) for row in inputs]


def test_an_epoch_has_every_conversation_at_most_once_and_few_left_over(tmp_path: Path) -> None:
    rows = rows_of(prepared(tmp_path, table(tmp_path, rows=200)))
    loader = ConversationLoader(rows, batch_size=16, seed=1)
    epochs = []
    for _ in range(2):
        seen = Counter(word for _ in range(loader.batches_per_epoch) for word in first_words(loader.next_batch()))
        assert max(seen.values()) == 1
        assert len(rows) - len(seen) < 16
        epochs.append(list(seen))
    assert epochs[0] != epochs[1]
    assert loader.epoch == 2


def test_rows_of_a_batch_are_of_about_one_length(tmp_path: Path) -> None:
    rows = rows_of(prepared(tmp_path, table(tmp_path, rows=400, longest=40)))
    loader = ConversationLoader(rows, batch_size=16, seed=1)
    batches = [loader.next_batch() for _ in range(loader.batches_per_epoch)]
    places = sum(inputs.numel() for inputs, _ in batches)
    assert int(rows.lengths.sum()) > 0.93 * places
    assert len({inputs.shape[1] for inputs, _ in batches[:5]}) > 1  # not from short to long


def test_the_order_is_a_formula_of_its_state_and_of_no_process(tmp_path: Path) -> None:
    made = prepared(tmp_path, table(tmp_path))
    rows, text = rows_of(made), TokenShards(made.folder, "train")
    one = ConversationLoader(rows, batch_size=8, seed=3, text=text, replay=0.25)
    for _ in range(5):
        one.next_batch()
    state = one.state()
    following = [one.next_batch() for _ in range(9)]
    again = ConversationLoader(rows, batch_size=8, seed=3, text=text, replay=0.25)
    again.restore(state)
    halves = [
        ConversationLoader(rows, batch_size=8, seed=3, text=text, replay=0.25, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    for half in halves:
        half.restore(state)
    for inputs, targets in following:
        assert all(map(torch.equal, again.next_batch(), (inputs, targets)))
        parts = [half.next_batch() for half in halves]
        assert torch.equal(torch.cat([part[0] for part in parts]), inputs)
        assert torch.equal(torch.cat([part[1] for part in parts]), targets)
    with pytest.raises(DataError, match="other conversations"):
        ConversationLoader(rows, batch_size=8, seed=3).restore(state)


def test_a_share_of_the_rows_is_text_that_is_learned_whole(tmp_path: Path) -> None:
    made = prepared(tmp_path, table(tmp_path))
    text = TokenShards(made.folder, "validation")
    whole = text.read(0, len(text)).tolist()
    loader = ConversationLoader(rows_of(made), batch_size=8, seed=3, text=text, replay=0.25)
    for _ in range(10):
        inputs, targets = loader.next_batch()
        assert inputs.shape[0] == 8
        for row in (6, 7):
            ids = [*inputs[row].tolist(), int(targets[row, -1])]
            assert targets[row].tolist() == ids[1:]
            assert any(whole[i : i + len(ids)] == ids for i in range(len(whole)))


def test_few_conversations_fill_a_batch_more_than_once(tmp_path: Path) -> None:
    rows = rows_of(prepared(tmp_path, table(tmp_path, rows=5)))
    loader = ConversationLoader(rows, batch_size=16, seed=0)
    assert loader.next_batch()[0].shape[0] == 16
    assert loader.epoch == 1


def test_validation_counts_every_answer_once(tmp_path: Path) -> None:
    rows = rows_of(prepared(tmp_path, table(tmp_path)))
    batches = list(conversation_batches(rows, 7))
    assert sum(len(inputs) for inputs, _, _ in batches) == len(rows)
    expected = sum(int((answer_targets(rows.ids(i), BYTES.roles) != IGNORED).sum()) for i in range(len(rows)))
    assert sum(count for _, _, count in batches) == expected
