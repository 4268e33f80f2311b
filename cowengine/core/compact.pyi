from cowengine.core.datapath import DataPath
from cowengine.core.roots import Head

def move_home(
    path: DataPath, first: int, head: Head | None = None
) -> tuple[int, int, bool, list[tuple[int, int, int, int]]]: ...
