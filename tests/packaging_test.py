"""What a wheel holds: every folder of modules is a package."""

import pathlib

ROOT = pathlib.Path(__file__).parents[1]


def test_every_folder_of_modules_is_a_package():
    # setuptools leaves out folders without one, and an editable install hides it.
    bare = {
        path.parent.relative_to(ROOT).as_posix()
        for top in ("trustml", "launch")
        for path in (ROOT / top).rglob("*.py")
        if not (path.parent / "__init__.py").exists()
    }
    assert not bare
