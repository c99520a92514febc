"""Pictures of concepts on the hospital's own cells. Local: none of them may leave the hospital."""
