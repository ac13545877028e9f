"""Import names of the authors' release 2.0 for `prompt_transfer`.

`prompt_hub.hub.PromptHub` and `prompt_hub.training_args.PromptTrainingArguments` have the arguments and defaults of
release 2.0; new code imports both names from `prompt_transfer`. Differences: docs/pages/migration.md.
"""
