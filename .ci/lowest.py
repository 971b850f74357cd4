"""Print the lowest releases that pyproject.toml allows with all extras, as constraints for pip."""

import re
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
lowest: dict[str, str] = {}
for needs in (project["dependencies"], *project["optional-dependencies"].values()):
    for name, version in re.findall(r"^([\w.-]+)(?:\[.*\])?>=([\d.]+)", "\n".join(needs), re.MULTILINE):
        lowest[name] = max(lowest.get(name, "0"), version, key=lambda text: [int(part) for part in text.split(".")])
print("\n".join(f"{name}=={version}" for name, version in lowest.items()))
