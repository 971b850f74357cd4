"""Print the lowest releases that pyproject.toml allows, as constraints for pip."""

import re
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
lowest: dict[str, str] = {}
for needs in (project["dependencies"], *project["optional-dependencies"].values()):
    for name, version in re.findall(r"^([\w.-]+)(?:\[.*\])?>=([\d.]+)", "\n".join(needs), re.MULTILINE):
        lowest.setdefault(name, version)
print("\n".join(f"{name}=={version}" for name, version in lowest.items()))
