from dataclasses import replace

import pytest

from fl_i2moe.data import layouts


def test_a_file_tells_the_layout(tmp_path, monkeypatch):
    calls = []
    fakes = {
        name: replace(layout, load=lambda folder, name=name, **options: calls.append((name, folder, options)))
        for name, layout in layouts.LAYOUTS.items()
    }
    monkeypatch.setattr(layouts, "LAYOUTS", fakes)
    for name, layout in fakes.items():
        folder = tmp_path / layout.title
        folder.mkdir()
        (folder / layout.file).touch()
        assert layouts.find_layout(folder) == name
        if name == "mmimdb":
            layouts.load_layout(folder, min_label_count=3)
            assert calls.pop() == (name, folder, {"on_bad_sample": "stop", "min_label_count": 3})
        else:
            with pytest.raises(ValueError, match=f"for genres of films, .* has the {layout.title} layout"):
                layouts.load_layout(folder, min_label_count=3)
        layouts.load_layout(folder, on_bad_sample="skip")
        assert calls.pop() == (name, folder, {"on_bad_sample": "skip"})
    with pytest.raises(ValueError, match=r"no known layout; .*ENRICO \(design_topics\.csv\)"):
        layouts.load_layout(tmp_path)
    for path in (tmp_path / "nowhere", tmp_path / "ENRICO" / "design_topics.csv"):
        with pytest.raises(ValueError, match="is no folder, or is not there"):
            layouts.load_layout(path)
    (tmp_path / "ENRICO" / "split.json").touch()
    with pytest.raises(ValueError, match="several layouts: MM-IMDb, ENRICO"):
        layouts.load_layout(tmp_path / "ENRICO")
