"""`python -m cowengine.capi`: prints the folder for PKG_CONFIG_PATH."""

from __future__ import annotations

from cowengine.capi import get_pkg_config_path

if __name__ == "__main__":
    print(get_pkg_config_path())
