"""Who trains what: memory and cost model, stage cuts, clusters, resume point, plan, and the plan's check."""
