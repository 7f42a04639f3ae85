"Everything comes from settings.ini; the extra `dev` has what running and testing the notebooks needs."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

config = ConfigParser(delimiters=['='])
config.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    license='Apache-2.0', keywords=cfg['keywords'].split(), url=cfg['git_url'], project_urls=dict(Source=cfg['git_url']),
    classifiers=['Intended Audience :: Science/Research', 'Programming Language :: Python :: 3'],
    packages=[cfg['lib_path']], package_data={cfg['lib_path']: ['*.safetensors']}, python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(), extras_require=dict(dev=cfg['dev_requirements'].split()),
    long_description=cfg['description'], long_description_content_type='text/plain')
