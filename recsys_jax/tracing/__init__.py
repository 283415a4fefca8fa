"""Knowledge tracing: what a student will answer next, one step or many steps ahead."""
