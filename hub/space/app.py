"""
A page that shows what an FL-I²MoE says of a sample, and why: predictions, expert weights, the words and cells that they
rest on, and pairs of them.

    python hub/space/app.py --model runs/sample

On the Hub it serves the model that the file `model_id` beside it names, as hub/publish_space.py writes it.
"""

import argparse
import html
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image

from fl_i2moe import FLI2MoEModel, FLI2MoEProcessor
from fl_i2moe.explain import explain
from fl_i2moe.metrics.figures import expert_title
from fl_i2moe.model.pinned_encoders import takes_raw_inputs
from fl_i2moe.model.pipeline_fl_i2moe import FLI2MoEPipeline
from fl_i2moe.utils.checked_json import read_json
from fl_i2moe.utils.machine import usable_cores

MAX_CHARACTERS = 5_000
MAX_PIXELS = 25_000_000
MAX_FILE_SIZE = "10mb"
MAX_SECONDS = 18
"""For an explanation; drawing it takes another one."""

EXAMPLES = Path(__file__).parent / "examples"
ABOUT = """
Each **expert** stands for a kind of interaction: what one modality tells alone (uniqueness), what they tell only
together (synergy), what either tells (redundancy). A weight says how strongly an expert's answer counts, not how much
evidence it holds, and with the published objective an expert need not be what its name says.

**Explain** takes words out of the text and cells out of the picture, encodes what is left anew, and sees what the class
loses: what a word is credited with is not told by the rest of the text. How finely it looks depends on what this
machine can do in some {seconds} seconds, and is said on top of the explanation.
"""


EXAMPLES_SHAPE = {"samples": [{str: str}], "classes?": [str]}
"""Of `examples.json`; without `classes` they go with any model."""


class TextInput:
    """A text that visitors type."""

    def component(self, label: str) -> gr.components.Component:
        hint = f"At most {MAX_CHARACTERS:,} characters"
        return gr.Textbox(label=label, placeholder=hint, lines=5, max_lines=12, max_length=2 * MAX_CHARACTERS)

    def check(self, name: str, value: Any) -> str:
        if value is not None and not isinstance(value, str):
            raise _refusal(f"The {name} must be a text.")
        text = (value or "").strip()
        if not text:
            raise _refusal(f"Please enter a {name}.")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise _refusal(f"The {name} has characters that are no Unicode text.")
        if len(text) > MAX_CHARACTERS:
            raise _refusal(f"The {name} has {len(text):,} characters; at most {MAX_CHARACTERS:,} are possible.")
        return text

    def example(self, value: str) -> str:
        return value


class PictureInput:
    """A picture that visitors upload or paste: the path of its file."""

    def component(self, label: str) -> gr.components.Component:
        # image_mode=None: Gradio does not decode the picture, whose size is to be checked first
        return gr.Image(label=label, type="filepath", image_mode=None, sources=["upload", "clipboard"], height=320)

    def check(self, name: str, value: Any) -> str:
        if value is None:
            raise _refusal(f"Please give a picture ({name}).")
        try:
            with Image.open(value) as image:  # reads its head only
                pixels = image.width * image.height
        except Exception as error:  # Pillow's readers of some fifty formats run into errors of any type
            raise _refusal(f"The file given as {name} is no picture that can be read.") from error
        if pixels > MAX_PIXELS:
            raise _refusal(f"The {name} has {pixels:,} pixels; at most {MAX_PIXELS:,} are possible.")
        return value

    def example(self, value: str) -> str:
        return str(EXAMPLES / value)


INPUTS: dict[str, Any] = {"image": PictureInput(), "text": TextInput()}
"""Kind of a modality → its component, what is refused before anything is computed, and its example values."""


class Explorer:
    """The model, and what happens when a button is pressed."""

    def __init__(self, name: str):
        self.model = FLI2MoEModel.from_pretrained(name).eval()
        self.config = self.model.config
        if not takes_raw_inputs(self.config):
            raise ValueError(f"{name} takes no raw values, only features: there is nothing to type in or upload.")
        processor = FLI2MoEProcessor.from_pretrained(name)
        self.classify = FLI2MoEPipeline(
            model=self.model, processor=processor, task="image-text-classification", device="cpu"
        )
        for modality in self.config.modality_order:
            self.model.raw_inputs.load(modality)  # now, not while the first visitor waits
        self.kinds = {modality: self.config.encoders[modality]["kind"] for modality in self.config.modality_order}
        if unknown := {kind for kind in self.kinds.values() if kind not in INPUTS}:
            raise ValueError(f"This page has no input for {', '.join(unknown)}, which {name} takes; add it to INPUTS.")
        self.labels = [self.config.id2label[index] for index in range(self.config.num_labels)]

    def predict(self, *values):
        """Scores of the labels and weights of the experts, for the components, and the class to explain next."""
        sample = self._check(values)
        try:
            entries = self.classify(sample, top_k=None)
        except ValueError as error:
            raise _refusal(str(error)) from error
        scores = {entry["label"]: entry["score"] for entry in entries}
        weights = {expert_title(name): weight for name, weight in entries[0]["expert_weights"].items()}
        return scores, weights, gr.update(value=entries[0]["label"])

    def explain(self, target, *values, progress=gr.Progress()):  # noqa: B008  (how Gradio passes it)
        sample = self._check(values)
        shares = [0.0]

        def on_stage(stage, encodings, expected):
            # what is expected changes with the speed; a bar only goes forward
            shares.append(max(shares[-1], min(1.0, encodings / expected if expected else 0.0)))
            progress(shares[-1], stage)

        try:
            explanation = explain(
                self.model, {"id": "your sample", **sample}, target, max_seconds=MAX_SECONDS, on_stage=on_stage
            )
            progress(1.0, "Drawing")
            with tempfile.TemporaryDirectory() as folder:
                page = explanation.save(Path(folder) / "page.html").read_text(encoding="utf-8")
        except ValueError as error:
            raise _refusal(str(error)) from error
        # a frame of its own, in which nothing of the page can reach this one
        return f'<iframe sandbox="allow-scripts" srcdoc="{html.escape(page)}" title="Explanation"></iframe>'

    def _check(self, values):
        """The sample by modality; says what is missing or too large before anything is computed."""
        if len(values) != len(self.kinds):
            raise _refusal(f"Please give {', '.join(self.kinds)}: {len(self.kinds)} inputs, not {len(values)}.")
        sample = zip(self.kinds.items(), values, strict=True)
        return {name: INPUTS[kind].check(name, value) for (name, kind), value in sample}


def _refusal(message: str) -> gr.Error:
    """What a visitor reads, which Gradio takes for HTML; it is no fault of this program, so nothing is logged."""
    return gr.Error(html.escape(message), print_exception=False)


def build_page(explorer: Explorer, name: str) -> gr.Blocks:
    with gr.Blocks(title="FL-I²MoE", analytics_enabled=False) as page:
        gr.Markdown(f"# What told the class?\n\nModel: `{name}`\n{ABOUT.format(seconds=MAX_SECONDS)}")
        with gr.Row(equal_height=False):
            with gr.Column():
                inputs = [
                    INPUTS[kind].component(modality.replace("_", " ").capitalize())
                    for modality, kind in explorer.kinds.items()
                ]
                predict = gr.Button("Predict", variant="primary")
                if examples := _examples(explorer.kinds, explorer.labels):
                    gr.Examples(examples, inputs, label="Examples")
            with gr.Column(elem_id="results"):
                scores = gr.Label(label="Classes", num_top_classes=5, show_heading=False)
                weights = gr.Label(label="Expert weights", show_heading=False)
                target = gr.Dropdown(explorer.labels, label="Class to explain", value=None)
                explain_it = gr.Button("Explain")
        shown = gr.HTML(label="Explanation", elem_id="explanation")
        predict.click(
            explorer.predict,
            inputs,
            [scores, weights, target],
            api_name="predict",
            show_progress_on=scores,  # or an error would stand on each of the three
        ).success(None, js=_scroll_to("#results"))  # which lie below on a phone
        explain_it.click(None, js=_scroll_to("#explanation"))  # to the progress
        explain_it.click(
            explorer.explain,
            [target, *inputs],
            shown,
            api_name="explain",
            concurrency_limit=1,
            show_progress="full",
        ).success(None, js=_scroll_to("iframe"))
    return page


def _scroll_to(selector: str) -> str:
    """Brings what is out of sight to the top; what is in sight stays where it is."""
    return (
        f"() => {{ const x = document.querySelector('{selector}'); "
        "if (x && x.getBoundingClientRect().bottom > innerHeight) x.scrollIntoView({behavior: 'smooth'}) }"
    )


def _examples(kinds: dict[str, str], labels: list[str]) -> list[list[str]]:
    """Of `examples/examples.json`, those that have every modality of the model; none if they are of other classes."""
    file = EXAMPLES / "examples.json"
    if not file.is_file():
        return []
    content = read_json(file, EXAMPLES_SHAPE)
    if set(content.get("classes", labels)) != set(labels):
        return []
    return [
        [INPUTS[kind].example(row[name]) for name, kind in kinds.items()]
        for row in content["samples"]
        if set(kinds) <= set(row)
    ]


def _named_model() -> str | None:
    file = Path(__file__).parent / "model_id"
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


STYLE = """
#explanation { min-height: 140px !important; }  /* as high as what it shows while it computes */
iframe { width: 100%; height: 90vh; border: 1px solid #ddd; border-radius: 6px; background: white; }
.gradio-container { max-width: 1100px !important; margin: 0 auto !important; }
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=_named_model(), help="Folder or hub id of a model.")
    parser.add_argument("--port", type=int, help="Port on this machine; a free one from 7860 on if not given.")
    arguments = parser.parse_args()
    if not arguments.model:
        raise SystemExit("error: give a model by --model.")
    torch.set_num_threads(usable_cores())
    try:
        explorer = Explorer(arguments.model)
        page = build_page(explorer, Path(arguments.model).name if Path(arguments.model).exists() else arguments.model)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    page.queue(max_size=20, default_concurrency_limit=2)
    page.launch(server_port=arguments.port, max_file_size=MAX_FILE_SIZE, css=STYLE)


if __name__ == "__main__":
    main()
