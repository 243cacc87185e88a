"""Built-in hooks: what runs beside the updates of training, one file each."""
