"""Install timet: every fact comes from `settings.ini`, so that it is written once."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
config = ConfigParser(interpolation=None, delimiters=["="])
config.read(root / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
samples = "timet.data_samples"  # the sample clips travel inside the wheel: the default run needs no network

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(root / "README.md").read_text(encoding="utf-8") if (root / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author=cfg["author"],
    author_email=cfg["author_email"],
    keywords=cfg["keywords"],
    python_requires=f">={cfg['min_python']}",
    packages=[*find_packages(include=["timet", "timet.*"]), samples],
    package_dir={samples: "data_samples"},
    package_data={samples: ["*", "*/*", "*/*/*", "*/*/*/*"]},
    install_requires=[*cfg["requirements"].split(), *(r.strip() for r in cfg["faiss"].split("|"))],
    extras_require={
        "lab": cfg["lab_requirements"].split(),
        "flow": cfg["flow_requirements"].split(),
        "pretrain": cfg["pretrain_requirements"].split(),
        "dev": cfg["dev_requirements"].split(),
    },
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    zip_safe=False,
)
