"""What a change costs a resumed run, and what is done with each component: for the launcher and for the trainer."""
