"""
Texts: tokenized, cut, encoded as tokens, and found again as spans of their characters.

Shape letters: B samples, T tokens.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar, Self

import tokenizers
from tokenizers.pre_tokenizers import Sequence as Sequential
from tokenizers.pre_tokenizers import Split
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.utils import logging

from .kind import EncodedFeatures, EncodedKind, FrozenEncoder, Preprocessed, checksum, is_missing
from .places import Places, UnitOptions, Units, merge_neighbours
from .words import sentences, words

logger = logging.get_logger(__name__)

DEFAULT_MAX_LENGTH = 512
MAX_PADDED_LENGTH = 4096
"""Texts are not padded to a longer limit, which only says that there is none."""

ATTENDED = "attended"
"""Name among the encoder's inputs of the attention mask (B, T) of a text of which tokens are left out."""

Span = tuple[int, int]
"""First character and the one behind the last."""


@dataclass(frozen=True)
class TextPreprocessor:
    """Texts to token ids, padded on the right to the longest of the batch and cut at `max_length` tokens. An annotation
    is `offsets`, the (start, end) characters of every feature, (0, 0) for a special one; `num_tokens` before the cut,
    special ones included; `truncated`.

    Args:
        tokenizer: a fast tokenizer (only those know the characters of a token).
        max_length: tokens of a sequence, special ones included.
        keep_special: whether special tokens are features, and so have offsets.
        tokenizer_sha256: of the tokenizer's own description.
    """

    tokenizer: Any
    max_length: int
    keep_special: bool
    tokenizer_sha256: str

    def __call__(self, values: Sequence[str]) -> Preprocessed:
        for value in values:
            _check_text(value)
        batch = self.tokenizer(
            list(values),
            max_length=self.max_length,
            truncation=True,
            padding=True,
            split_special_tokens=True,  # "[SEP]" in a text is text
            return_attention_mask=True,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        offsets = batch.pop("offset_mapping").tolist()
        annotations = [self._annotate(encoding, row) for encoding, row in zip(batch.encodings, offsets, strict=True)]
        return Preprocessed(dict(batch), annotations)

    def _annotate(self, encoding: Any, offsets: list[list[int]]) -> dict[str, Any]:
        # What truncation cut off follows in `overflowing`, each part with special tokens of its own.
        cut_off = sum(part.special_tokens_mask.count(0) for part in encoding.overflowing)
        special, real = encoding.special_tokens_mask, encoding.attention_mask
        kept = [i for i in range(len(real)) if real[i] and (self.keep_special or not special[i])]
        if not kept:
            reason = " but special ones, which special_features='drop' leaves out" if sum(real) else ""
            raise ValueError(f"a text has no tokens{reason}")
        return {
            "offsets": [(0, 0) if special[i] else tuple(offsets[i]) for i in kept],
            "num_tokens": sum(real) + cut_off,
            "truncated": cut_off > 0,
        }

    @classmethod
    def from_tokenizer(
        cls, tokenizer: Any, model: nn.Module, max_length: int | None, keep_special: bool, name: str
    ) -> TextPreprocessor:
        """Checks a tokenizer and the length asked for.

        Args:
            tokenizer: of the model.
            model: the text model, whose positions limit the length.
            max_length: tokens of a sequence; None for the limit, at most 512.
            keep_special: see the class.
            name: of the encoder, for messages.

        Raises:
            ValueError: a slow or empty tokenizer, or a `max_length` that the encoder does not take.
        """
        if not tokenizer.is_fast:
            raise ValueError(
                f"encoder {name!r}: {type(tokenizer).__name__} is a slow tokenizer and cannot tell which characters a "
                "token covers; use an encoder with a fast tokenizer (tokenizer.json)"
            )
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers builds an empty one where files are missing
            raise ValueError(f"encoder {name!r}: its tokenizer has no vocabulary; is tokenizer.json missing?")
        sha256 = hash_tokenizer(tokenizer)
        _set_up(tokenizer)
        if tokenizer.pad_token is None:
            raise ValueError(f"encoder {name!r}: its tokenizer has no special token that texts could be padded with")
        limit = length_limit(tokenizer, model)
        num_special = tokenizer.num_special_tokens_to_add(pair=False)
        if max_length is None:
            max_length = min(limit, DEFAULT_MAX_LENGTH)
        if not num_special < max_length <= limit:
            raise ValueError(
                f"max_length={max_length} does not fit encoder {name!r}: it takes {num_special + 1} to {limit} tokens, "
                f"{num_special} special ones included"
            )
        return cls(tokenizer, max_length, keep_special, sha256)

    @property
    def max_features(self) -> int:
        """The longest sequence that comes out."""
        return self.max_length - (0 if self.keep_special else self.tokenizer.num_special_tokens_to_add(pair=False))

    def identity(self) -> dict[str, Any]:
        """What decides the token ids besides `max_length`, as plain JSON."""
        return {"tokenizer_sha256": self.tokenizer_sha256, "tokenizers": tokenizers.__version__}


def _check_text(value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"a text must be a string, got {type(value).__name__}: {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a text is no valid Unicode at character {error.start}: {value!r:.80}") from error


def _set_up(tokenizer: Any) -> None:
    """Pads on the right, and reads control tokens that a text spells out ("</s>") as text."""
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token is None:  # GPT-2; what is padded is masked, so that any token will do
        tokenizer.pad_token = next(iter(tokenizer.all_special_tokens), None)
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    # Where the vocabulary itself has them (XLM-RoBERTa's), their first character is kept apart from the rest.
    control = [x for x in tokenizer.all_special_tokens if x != tokenizer.unk_token and len(x) > 1]
    read = [x for x in control if tokenizer.convert_tokens_to_ids(x) in backend.encode(x, add_special_tokens=False).ids]
    if read:
        spelled = "|".join(f"{re.escape(x[0])}(?={re.escape(x[1:])})" for x in read)
        steps = [backend.pre_tokenizer] if backend.pre_tokenizer is not None else []
        backend.pre_tokenizer = Sequential([*steps, Split(tokenizers.Regex(spelled), "isolated")])


def length_limit(tokenizer: Any, model: nn.Module) -> int:
    """The longest sequence, in tokens, that both take."""
    return min(tokenizer.model_max_length, _position_limit(model))


def _position_limit(model: nn.Module) -> int:
    """The longest sequence the model has positions for; RoBERTa and its kin count from behind the padding index."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2].startswith("position_embedding"):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)  # FSMT's encoder has no config
    return limit if isinstance(limit, int) and limit > 0 else 10**9  # relative positions have no limit; XLNet says -1


def hash_tokenizer(tokenizer: Any) -> str:
    """sha256 of a fast tokenizer's description of itself."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    settings_of_a_call = ("truncation", "padding")
    return hashlib.sha256(
        json.dumps({key: state[key] for key in state if key not in settings_of_a_call}, sort_keys=True).encode()
    ).hexdigest()


class FrozenTextEncoder(FrozenEncoder):
    """Texts → tokens, with the tokenizer's special tokens (CLS, BOS, SEP) marked.

    An encoder that takes no attention mask (FNet), or whose tokenizer makes none (SigLIP), sees padding and was trained
    on texts of full length. It gets every text so padded; the padding's features are left out.

    Raises:
        ValueError: the model gives no feature per token, or others for the same text in another batch.
    """

    kind = "text"
    preprocess: TextPreprocessor
    removals: Mapping[str, str] = {
        "attention": "left out of the encoder's attention, positions stay",
        "mask": "replaced by the tokenizer's mask token",
    }

    def __init__(self, *args: Any, preprocess: TextPreprocessor):
        super().__init__(*args)
        self.preprocess = preprocess
        self.max_features = preprocess.max_features
        tokenizer = preprocess.tokenizer
        takes = inspect.signature(self.model.forward).parameters
        names = takes if "input_ids" in takes else {*tokenizer.model_input_names, "attention_mask"}
        self._input_names = {name for name in (*tokenizer.model_input_names, "input_ids") if name in names}
        sees_padding = "attention_mask" not in self._input_names
        limit = length_limit(tokenizer, self.model)
        self._padded_length = (limit if limit <= MAX_PADDED_LENGTH else preprocess.max_length) if sees_padding else None
        if sees_padding:
            self.removals = {"mask": self.removals["mask"]}
        stands_for_nothing = (tokenizer.mask_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
        self._mask_id = next(token for token in stands_for_nothing if token is not None)
        texts = ["a", "the quick brown fox jumps over the lazy dog"]
        batches = [preprocess(texts[:1]).inputs, preprocess(texts).inputs]
        alone, together = (self._encode(inputs).features[0] for inputs in batches)
        self._is_tried, self.feature_size = True, alone.shape[1]
        gap = (together[: len(alone)] - alone).float().norm() / alone.float().norm()
        if not gap < 0.05:
            message = (
                f"{self._title}: the features of a text change by "
                f"{float(gap):.0%} with the texts beside it, or from call to call"
            )
            if not gap < 0.2:
                raise ValueError(f"{message}; use another encoder")
            logger.warning("%s.", message)

    def _model_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ids = inputs["input_ids"]
        if self._padded_length is None:
            given = {key: value for key, value in inputs.items() if key in self._input_names}
            return given if ATTENDED not in inputs else given | {"attention_mask": inputs[ATTENDED]}
        padding = self._padded_length - ids.shape[1]
        return {"input_ids": nn.functional.pad(ids, (0, padding), value=self.preprocess.tokenizer.pad_token_id)}

    def _encode(self, inputs: dict[str, Tensor]) -> EncodedFeatures:
        model_inputs = self._model_inputs(inputs)
        hidden, (batch_size, length) = self._hidden_state(model_inputs), inputs["input_ids"].shape
        if hidden.shape[:-1] != model_inputs["input_ids"].shape:
            raise ValueError(
                f"{self._title} gives features of shape "
                f"{tuple(hidden.shape)} for {batch_size} texts of {length} tokens, not one a token; use another "
                "encoder, or another hidden_layer"
            )
        feature_mask = inputs["attention_mask"].bool()
        return EncodedFeatures(hidden[:, :length], feature_mask, inputs["special_tokens_mask"].bool() & feature_mask)

    def _remove(self, inputs: dict[str, Tensor], kept: Tensor, removal: str) -> dict[str, Tensor]:
        mask = inputs["attention_mask"]
        kept = self._kept_positions(kept, inputs["special_tokens_mask"].bool() & mask.bool())
        if removal == "mask":
            return inputs | {"input_ids": inputs["input_ids"].where(kept, self._mask_id)}
        attended = mask * kept
        # of a text without special tokens nothing may be left, and attention needs something
        return inputs | {ATTENDED: attended.where(attended.any(dim=1, keepdim=True), mask)}


@dataclass(frozen=True)
class Piece:
    """A run of characters: one token, several that share characters, or none (between tokens, behind the last)."""

    start: int
    end: int
    indexes: tuple[int, ...] = ()


@dataclass
class TextPlaces(Places):
    """A text, and its tokens."""

    kind: ClassVar[str] = "text"
    feature_noun: ClassVar[str] = "tokens"

    text: str | None = None
    offsets: list[Span] | None = None

    @property
    def is_placed(self) -> bool:
        return self.text is not None

    def span(self, index: int) -> Span | None:
        """The token's characters; None for a special feature and a token without any."""
        if self.text is None or self.offsets is None or index in self.special:
            return None
        start, end = self.offsets[index]
        return (start, end) if end > start else None

    def name_of(self, index: int) -> str:
        """`“soup”`."""
        span = self.span(index)
        return super().name_of(index) if span is None else f"“{self.text[slice(*span)]}”"

    def place_of(self, index: int) -> dict[str, Any]:
        span = self.span(index)
        return {} if span is None else {"token": self.text[slice(*span)], "span": span}

    def missing(self) -> str | None:
        if self.text is not None:
            return None
        if self.sha256 is None:
            return "is not in the feature cache"
        return "is not the one that was encoded: give the row as it is in the feature cache, or encode the new text"

    def units(self, options: UnitOptions) -> Units:
        """Words or sentences, each with the tokens that have a character of it; words that share a token are one."""
        if self.text is None or self.offsets is None:
            raise ValueError(f"the text {self.missing() or 'has no tokens that are known to lie in it'}")
        found = words(self.text) if options.text == "words" else sentences(self.text)
        spans, groups = self._covered(found)
        notes = []
        end = spans[-1][1] if spans else len(self.text)
        if behind := sum(a >= end and any(map(str.isalnum, self.text[a:b])) for a, b in found):
            notes.append(
                f"is longer than its encoder reads: the last {behind:,} of {len(found):,} {options.text} play no part"
            )
        if len(spans) > options.most:
            notes.append(f"has {len(spans):,} {options.text}, of which neighbours are put together")
            numbers = merge_neighbours([[number] for number in range(len(spans))], options.most)
            groups = [[index for number in run for index in groups[number]] for run in numbers]
            spans = [(spans[run[0]][0], spans[run[-1]][1]) for run in numbers]
        places = replace(self, num_features=len(spans), special=[], offsets=spans, unit=options.text)
        return Units(places, groups, "; and it ".join(notes) or None)

    def _covered(self, spans: list[Span]) -> tuple[list[Span], list[list[int]]]:
        """The spans that have tokens, and these; those that share a token are one."""
        tokens = sorted((span, index) for index in self.candidates if (span := self.span(index)))
        found: list[tuple[Span, list[int]]] = []
        first = 0
        for start, end in spans:
            while first < len(tokens) and tokens[first][0][1] <= start:
                first += 1
            mine = list(takewhile(lambda token: token[0][0] < end, tokens[first:]))  # noqa: B023
            indexes = [index for _, index in mine]
            if found and indexes and indexes[0] in found[-1][1]:
                (earlier, _), shared = found[-1][0], found[-1][1]
                found[-1] = ((earlier, end), [*shared, *(index for index in indexes if index not in shared)])
            elif indexes:
                found.append(((start, end), indexes))
        owned = {index for _, indexes in found for index in indexes}
        for index in self.candidates:  # a token of no character, such as a lone marker of a word's beginning
            if index not in owned and found:
                nearest = min(found, key=lambda group: min(abs(index - other) for other in group[1]))
                nearest[1].append(index)
        return [span for span, _ in found], [sorted(indexes) for _, indexes in found]

    def pieces(self) -> list[Piece]:
        """The whole text, cut into tokens and what lies between them."""
        tokens: list[Piece] = []
        spans = [(span, index) for index in self.candidates if (span := self.span(index))]
        for (start, end), index in sorted(spans):
            if tokens and start < tokens[-1].end:  # tokens of parts of one character
                last = tokens.pop()
                tokens.append(Piece(last.start, max(last.end, end), (*last.indexes, index)))
            else:
                tokens.append(Piece(start, end, (index,)))
        pieces, position = [], 0
        for token in tokens:
            if token.start > position:
                pieces.append(Piece(position, token.start))
            pieces.append(token)
            position = token.end
        if self.text is not None and position < len(self.text):
            pieces.append(Piece(position, len(self.text)))
        return pieces

    @classmethod
    def from_row(
        cls, row: Mapping[str, Any], name: str, encoder: Mapping[str, Any], grid: Sequence[int] | None
    ) -> Self:
        places = super().from_row(row, name, encoder, grid)
        places.text, places.offsets = row.get(name), [(int(a), int(b)) for a, b in row[f"{name}_offsets"]]
        if None not in (places.text, places.sha256) and checksum(_content(places.text)) != places.sha256:
            places.text = None  # its tokens lie elsewhere
        return places

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "offsets": self.offsets and [list(span) for span in self.offsets]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        places = super().from_dict(values)
        places.offsets = values["offsets"] and [tuple(span) for span in values["offsets"]]
        return places


class TextKind(EncodedKind):
    """Texts."""

    name = "text"
    raw_type: ClassVar = {"dtype": "string", "_type": "Value"}
    annotation_types: ClassVar = {
        "offsets": {
            "feature": {"feature": {"dtype": "int32", "_type": "Value"}, "length": 2, "_type": "List"},
            "_type": "List",
        }
    }
    can_be_cut = True
    places = TextPlaces
    main_inputs, tower, main_tensor = ("input_ids",), "text_config", "input_ids"
    default_options: ClassVar = {"max_length": None}

    def from_table(self, value: Any, folders: Sequence[Path]) -> str | None:
        if is_missing(value):
            return None
        text = str(value) if type(value) is int else value  # a year, a code
        _check_text(text)
        return text

    def content(self, cell: str) -> bytes:
        return _content(cell)

    def annotation_cells(self, annotation: Mapping[str, Any]) -> dict[str, Any]:
        return {"offsets": [list(pair) for pair in annotation["offsets"]]}

    def cut_share(self, annotation: Mapping[str, Any]) -> float | None:
        return 1 - len(annotation["offsets"]) / annotation["num_tokens"] if annotation["truncated"] else None

    def create_encoder(
        self, model: nn.Module, common: tuple[Any, ...], load: Callable[..., Any], options: Mapping[str, Any], name: str
    ) -> FrozenTextEncoder:
        tokenizer = load(AutoTokenizer, "tokenizer.json")
        keeps_special = common[-1] == "keep"
        preprocess = TextPreprocessor.from_tokenizer(tokenizer, model, options["max_length"], keeps_special, name)
        return FrozenTextEncoder(*common, preprocess=preprocess)

    def options_of(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        return {"max_length": identity["max_length"]}

    def pin(self, encoder: FrozenEncoder, identity: Mapping[str, Any], modality: str) -> None:
        _check_tokenizer(encoder.preprocess.tokenizer_sha256, identity, modality)

    def load_preprocessor(
        self, identity: Mapping[str, Any], modality: str, load: Callable[..., Any]
    ) -> TextPreprocessor:
        tokenizer = load(AutoTokenizer, "tokenizer.json")
        sha256 = hash_tokenizer(tokenizer)
        _set_up(tokenizer)
        _check_tokenizer(sha256, identity, modality)
        return TextPreprocessor(tokenizer, identity["max_length"], identity["special_features"] == "keep", sha256)

    def example(self, modality: str, identity: Mapping[str, Any]) -> str:
        return '"A pianist …"'

    def describe_preprocessing(self, identity: Mapping[str, Any]) -> str:
        return f"Texts are cut after {identity['max_length']} tokens."


def _content(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _check_tokenizer(sha256: str, identity: Mapping[str, Any], modality: str) -> None:
    if sha256 != identity["preprocessing"]["tokenizer_sha256"]:  # which another version of tokenizers may write, too
        logger.warning(
            "The tokenizer of %r describes itself differently than at training (tokenizers %s); if it cuts texts "
            "differently, so do predictions.",
            modality,
            identity["preprocessing"]["tokenizers"],
        )
