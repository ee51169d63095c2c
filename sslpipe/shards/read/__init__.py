"""Reading shard sets: where tars lie, and how their bytes come here."""
