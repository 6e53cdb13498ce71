import pytest

from fl_i2moe.data import layouts


def test_a_file_tells_the_layout(tmp_path, monkeypatch):
    calls = []
    loaders = {
        file: (name, lambda folder, name=name, **options: calls.append((name, folder, options)))
        for file, (name, _) in layouts.LOADERS.items()
    }
    for file, (name, load) in loaders.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / file).touch()
        monkeypatch.setattr(layouts, "LOADERS", loaders)
        if name == "MM-IMDb":
            monkeypatch.setattr(layouts, "load_mmimdb", load)
            layouts.load_layout(folder, min_label_count=3)
            assert calls.pop() == (name, folder, {"on_bad_sample": "stop", "min_label_count": 3})
        else:
            with pytest.raises(ValueError, match="for genres of films"):
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
