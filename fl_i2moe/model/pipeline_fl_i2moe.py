"""The transformers pipeline "image-text-classification": raw samples → labels, scores and what the experts say."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from .kind import Kind
from .kinds import KINDS
from .probabilities import decide, probabilities

TASK = "image-text-classification"
FUNCTIONS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "sigmoid": lambda logits, temperature: (logits / temperature).sigmoid(),
    "softmax": lambda logits, temperature: (logits / temperature).softmax(dim=-1),
    "none": lambda logits, temperature: logits,
}


class FLI2MoEPipeline(Pipeline):
    """
    Classifies samples of several modalities, and says how the interaction experts share in the answer.

    ```python
    >>> classify = pipeline("image-text-classification", model="someone/fl-i2moe-mmimdb", trust_remote_code=True)
    >>> classify(image="poster.jpg", text="A pianist …", top_k=2)
    [{'label': 'Drama', 'score': 0.93, 'predicted': True, 'contributions': {'uniqueness_image': 0.4, …},
      'expert_weights': {'uniqueness_image': 0.18, …}},
     {'label': 'Music', 'score': 0.71, …}]
    ```

    A sample is a dictionary with the model's modalities by name, `classify({"image": "poster.jpg", "text": "…"})`;
    pictures are paths, addresses, PIL images or arrays, sounds paths, addresses, or samples with their rate, columns of
    a table a dictionary of their own. Other keys are left alone, so that rows of a data set can be given as they are. A
    list of samples gives a list of such lists, also as `classify(image=[…], text=[…])`; a data set or a generator gives
    an iterator. A modality may be left out, or None, where the model can fill it (`config.fill_missing`).

    To see why, in a page of the words and cells that an answer rests on, install the package `fl_i2moe`, which this
    pipeline does not need:

    ```python
    >>> from fl_i2moe.explain import explain
    >>> sample = {"image": "poster.jpg", "text": "A pianist …"}
    >>> explain(classify.model, sample, classify(sample)[0]["label"]).save("page.html")
    ```

    Parameters of a call:
        top_k (`int`, *optional*, defaults to 1):
            How many labels, the highest scores first; all if `None`. A regression gives all, in the model's order.
        function_to_apply (`str`, *optional*):
            `"sigmoid"`, `"softmax"` or `"none"`; by default what fits the model's task.
        batch_size, num_workers (`int`): samples at once, and processes that read pictures and sounds.

    Every entry has

        - `label`, and its `score`: a probability, of the logit divided by `config.temperature` if there is one; the
          logit itself under `"none"`, the number of a regression
        - `predicted`, of models with several labels a sample: whether the probability is above the label's threshold in
          `config.thresholds`, 0.5 if there are none
        - `contributions`: expert → its weight times its logit of the label; they sum to the mixture's logit
        - `expert_weights`: expert → its weight, which is the sample's and the same in all entries
    """

    _load_processor = True
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, top_k: Any = "", function_to_apply: str | None = None, **kwargs):
        if kwargs:
            raise ValueError(
                f"Unknown parameters {sorted(kwargs)}; there are `top_k` and `function_to_apply`, and this model's "
                f"inputs {self.processor.modality_order}."
            )
        if function_to_apply is not None and function_to_apply not in FUNCTIONS:
            raise ValueError(f'`function_to_apply` must be "sigmoid", "softmax" or "none", got {function_to_apply!r}.')
        if top_k not in ("", None) and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
            raise ValueError(f"`top_k` must be a whole number, at least 1, or None; got {top_k!r}.")
        settings = {} if top_k == "" else {"top_k": top_k}
        if function_to_apply is not None:
            settings["function_to_apply"] = function_to_apply
        return {}, {}, settings

    def __call__(self, inputs=None, **kwargs):
        order = self.processor.modality_order
        if by_name := {name: kwargs.pop(name) for name in order if name in kwargs}:
            if inputs is not None:
                raise ValueError(f"Give samples, or {', '.join(by_name)} by name, not both.")
            inputs = _samples(by_name, self._kinds)
        elif inputs is None:
            given = ", ".join(kwargs) or "nothing"
            raise ValueError(f"Give a sample, a list of samples, or {order} by name; got {given}.")
        if isinstance(inputs, list) and not inputs:  # in which transformers would look for a first sample
            return []
        known = isinstance(inputs, (str, Mapping, list, torch.utils.data.Dataset))
        if not known and hasattr(inputs, "__getitem__"):  # a data set of the `datasets` library, for example
            inputs = (row for row in inputs)
        return super().__call__(inputs, **kwargs)

    def preprocess(self, inputs: Mapping[str, Any]) -> dict[str, list[Any]]:
        """One sample, its files opened (here, so that worker processes do it); lists of one, None where it lacks a
        modality."""
        order = self.processor.modality_order
        if not isinstance(inputs, Mapping):
            raise ValueError(f"A sample is a dictionary with {order}, got {type(inputs).__name__}.")
        given = {name: inputs[name] for name in order if inputs.get(name) is not None}
        missing = [name for name in order if name not in given]
        if missing and (not given or self.model.config.fill_missing is None):
            there = [key for key, value in inputs.items() if value is not None]
            raise ValueError(f"A sample lacks {missing}; it has {there}, this model takes {order}.")
        return {name: [self._kinds[name].open(given[name]) if name in given else None] for name in order}

    @property
    def _kinds(self) -> dict[str, Kind]:
        return {name: KINDS[identity["kind"]] for name, identity in self.processor.encoders.items()}

    def _forward(self, model_inputs: dict[str, list[Any]]) -> dict[str, torch.Tensor]:
        output = self.model(**self.processor(**model_inputs))
        return {key: output[key] for key in ("logits", "expert_logits", "expert_weights")}

    def postprocess(
        self, model_outputs: dict[str, torch.Tensor], top_k: int | None = 1, function_to_apply: str | None = None
    ) -> list[dict[str, Any]]:
        """One sample's outputs, (1, …) each."""
        config = self.model.config
        logits, expert_logits, weights = (
            model_outputs[key][0].double() for key in ("logits", "expert_logits", "expert_weights")
        )
        told = probabilities(logits, config)
        scores = FUNCTIONS[function_to_apply](logits, config.temperature or 1) if function_to_apply else told
        if config.problem_type == "regression":
            chosen = list(range(len(scores)))
        else:
            chosen = scores.argsort(descending=True, stable=True)[:top_k].tolist()
        predicted: list[dict[str, Any]] = [{} for _ in scores]
        if config.problem_type == "multi_label_classification":
            predicted = [{"predicted": x} for x in decide(told, config).tolist()]

        def by_expert(values: torch.Tensor) -> dict[str, float]:
            return dict(zip(config.expert_names, values.tolist(), strict=True))

        return [
            {
                "label": config.id2label[index],
                "score": scores[index].item(),
                **predicted[index],
                "contributions": by_expert(weights * expert_logits[:, index]),
                "expert_weights": by_expert(weights),
            }
            for index in chosen
        ]

    def get_iterator(
        self, inputs, num_workers: int, batch_size: int, preprocess_params, forward_params, postprocess_params
    ) -> Iterator[list[dict[str, Any]]]:
        """As the parent's, which can only put together what a tokenizer or an image processor of its own made."""
        wrapper = PipelineDataset if hasattr(inputs, "__len__") else PipelineIterator
        loader = DataLoader(
            wrapper(inputs, self.preprocess, preprocess_params),
            num_workers=num_workers if wrapper is PipelineDataset else min(num_workers, 1),
            batch_size=batch_size,
            collate_fn=_collate,
            generator=torch.Generator(),
        )
        outputs = PipelineIterator(loader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)


def _samples(by_name: Mapping[str, Any], kinds: Mapping[str, Kind]) -> Mapping[str, Any] | list[Mapping[str, Any]]:
    """One sample; a list of them where modalities come as lists. None stands for a modality that none has."""
    given = {name: value for name, value in by_name.items() if value is not None}
    lengths = {name: len(value) if kinds[name].is_batch(value) else None for name, value in given.items()}
    if set(lengths.values()) <= {None}:
        return by_name
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name}: {'one' if length is None else length}" for name, length in lengths.items())
        raise ValueError(f"Every modality needs one value, or a list of equally many; got {told}.")
    return [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]


def _collate(samples: list[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    return {name: [value for sample in samples for value in sample[name]] for name in samples[0]}


__all__ = ["FLI2MoEPipeline"]
