"""Models of the Hugging Face hub, made ready for this machine: downloaded shard by shard and quantised meanwhile.

quantised_model(name) ─► kept already? ─► its folder
                              │ no
           listing ─► headers of the shards ─► Plan ─► Journey.begin ─► transfer ┐ shard ─► GrowingContainer ─► kept
                                                            └─ one ahead ◄───────┘   dropped when it is used up
"""
