import logging

# With the extra `quantization`, transformers and PEFT import these libraries, which then report missing GPU extensions.
for _name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
