"""The paper's language-model experiments, to be started with `accelerate launch`; see README.md in this folder."""
