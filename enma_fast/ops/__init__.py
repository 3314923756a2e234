"""The only door to fast code: one file per operator, its reference beside its public function."""
