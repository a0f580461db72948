//! A store in memory, for tests and for services that keep nothing. (being written)
