"""Before the first step: flags become a model and a task, a run goes on, memory is estimated."""
