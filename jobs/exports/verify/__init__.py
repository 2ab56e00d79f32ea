"""An export opened again from storage and compared with what was audited."""
