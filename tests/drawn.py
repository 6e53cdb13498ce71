"""What a reader finds on a figure."""

from matplotlib.text import Text


def shown_texts(figure):
    """Visible texts with their boxes in pixels."""
    figure.canvas.draw()
    axes_of_panels = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    ticks = [(axis, tick) for axis in axes_of_panels for tick in axis.get_major_ticks()]
    outside = [
        t for axis, t in ticks if not min(axis.get_view_interval()) <= t.get_loc() <= max(axis.get_view_interval())
    ]
    undrawn = {label for tick in outside for label in (tick.label1, tick.label2)}
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text() and t not in undrawn]
    return [(t.get_text(), t.get_window_extent()) for t in texts]
