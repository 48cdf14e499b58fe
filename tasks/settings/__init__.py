"""What a run may be told: its configuration, checked, and the PEFT methods. Knows nothing else of ours."""
