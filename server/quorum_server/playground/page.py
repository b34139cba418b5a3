"""The playground's page: fields, buttons, and which action each calls. Only layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from quorum_client.modes import MODES
from quorum_server.playground.actions import Actions
from quorum_server.playground.tables import RANKING_HEAD, RUN_HEAD, SEPARATOR, UNCERTAIN_HEAD

_PROMPT = "I am so angry at my coworker that I want to hurt him."
_GOOD = "I am sorry that it has come to this. What happened? Let us calm down before you talk to him."
_BAD = "He deserves it. Wait for him in the parking lot."
_ODD = "Coworker coworker calm calm sorry sorry sorry happened happened!!!"
_EVENT: Any = {"api_visibility": "private", "show_progress": "minimal", "concurrency_limit": 8}
_EVERY_S = 2.0
_CACHE_S = (600, 3600)
"""How often pictures and uploads of the past are looked for, and how old they may grow: a server runs for weeks."""


def make_page(actions: Actions) -> gr.Blocks:
    """The page, bound to a server's actions."""
    page: gr.Blocks = gr.Blocks(title="Quorum", analytics_enabled=False, delete_cache=_CACHE_S)
    with page:
        gr.Markdown("# Quorum: what the members say")
        ensemble = gr.Dropdown([], label="ensemble", elem_id="ensemble", interactive=True)
        with gr.Tab("Rank"):
            _rank_tab(actions, ensemble)
        with gr.Tab("Compare"):
            _compare_tab(actions, ensemble)
        with gr.Tab("File"):
            _file_tab(actions, ensemble)
        with gr.Tab("Server"):
            _server_tab(actions)
        page.load(lambda: _choose(actions), outputs=ensemble, **_EVENT)
    return page


def _choose(actions: Actions) -> Any:
    names = actions.names()
    return gr.Dropdown(choices=names, value=names[0] if names else None)


def _rank_tab(actions: Actions, ensemble: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(scale=2):
            prompt = gr.Textbox(_PROMPT, label="prompt", lines=3, elem_id="prompt")
            text = gr.Textbox(
                f"\n{SEPARATOR}\n".join([_GOOD, _BAD, _ODD]),
                label=f"candidates, with a line of {SEPARATOR} between them",
                lines=10,
                elem_id="candidates",
            )
            center = gr.Radio(["group", "none"], value="group", label="centring", elem_id="center")
            button = gr.Button("Rank", variant="primary", elem_id="rank")
        with gr.Column(scale=3):
            with gr.Row():
                mode = gr.Dropdown(list(MODES), value="lcb", label="mode", elem_id="mode")
                beta = gr.Slider(0, 5, value=1.0, step=0.1, label="beta", elem_id="beta")
            note = gr.Markdown(elem_id="ranking-note")
            picture = gr.Plot(label="mean and reward (bars), members (dots)", elem_id="ranking-picture")
            table = _table(RANKING_HEAD, [10, 14, 12, 12, 12, 40], "ranking")
    scored = gr.State(None)
    shown = [picture, table, note]
    button.click(actions.rank, [ensemble, prompt, text, center, mode, beta], [scored, *shown], **_EVENT)
    for field in (mode, beta):
        field.change(actions.again, [scored, mode, beta], shown, trigger_mode="always_last", **_EVENT)


def _compare_tab(actions: Actions, ensemble: gr.Dropdown) -> None:
    prompt = gr.Textbox(_PROMPT, label="prompt", lines=2, elem_id="compare-prompt")
    with gr.Row():
        a = gr.Textbox(_GOOD, label="a", lines=4, elem_id="a")
        b = gr.Textbox(_BAD, label="b", lines=4, elem_id="b")
    button = gr.Button("Compare", variant="primary", elem_id="compare")
    note = gr.Markdown(elem_id="compare-note")
    picture = gr.Plot(label="margins", elem_id="compare-picture")
    button.click(actions.compare, [ensemble, prompt, a, b], [note, picture], **_EVENT)


def _file_tab(actions: Actions, ensemble: gr.Dropdown) -> None:
    gr.Markdown(
        'JSON lines as in `POST /score`: `{"prompt": …, "response": …}`. What the members differ on most comes first.'
    )
    file = gr.File(label="file", elem_id="file")
    button = gr.Button("Score", variant="primary", elem_id="score-file")
    note = gr.Markdown(elem_id="file-note")
    table = _table(UNCERTAIN_HEAD, [8, 10, 10, 32, 40], "uncertain")
    button.click(actions.score_file, [ensemble, file], [table, note], **_EVENT)


def _server_tab(actions: Actions) -> None:
    samples, seen = gr.State(None), gr.State(None)
    note = gr.Markdown(elem_id="server-note")
    picture = gr.Plot(label="the last minutes", elem_id="load")
    table = _table(RUN_HEAD, [16, 16, 18, 10, 10, 10, 10, 10], "runs", label="scored since the start")
    timer = gr.Timer(_EVERY_S)

    async def look(samples: Any, seen: Any) -> Any:
        return actions.look(samples, seen)

    timer.tick(look, [samples, seen], [samples, seen, note, picture, table], **{**_EVENT, "show_progress": "hidden"})


def _table(head: Sequence[str], widths: Sequence[int], name: str, **more: Any) -> gr.Dataframe:
    """widths: of the columns, percent."""
    return gr.Dataframe(
        headers=list(head), column_widths=[f"{width}%" for width in widths], interactive=False, wrap=True, elem_id=name,
        **more,
    )  # fmt: skip
