"Everything comes from settings.ini; extras: `weights` (the default model), `dev` (all that running and testing needs), `suite` (tools/transformers_suite.py), `site` (tools/docs.py)."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

config = ConfigParser(delimiters=['='])
config.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
weights = cfg['weights_requirements'].split()
readme = Path(__file__).parent/'README.md'

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    license='Apache-2.0', keywords=cfg['keywords'].split(), url=cfg['git_url'], project_urls=dict(Source=cfg['git_url']),
    classifiers=['Intended Audience :: Science/Research', 'Programming Language :: Python :: 3'],
    packages=[cfg['lib_path']], package_data={cfg['lib_path']: ['static/*']},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(),
    extras_require=dict(weights=weights, sweep=cfg['sweep_requirements'].split(), suite=cfg['suite_requirements'].split(),
                        site=cfg['site_requirements'].split(),
                        dev=cfg['dev_requirements'].split() + weights),
    entry_points=dict(console_scripts=cfg['console_scripts'].split()),
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '', long_description_content_type='text/markdown')
