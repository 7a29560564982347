-- The present schema of a Doorstep database, and the documentation of its data.
--
-- All tables are STRICT. Times are milliseconds since the Unix epoch. `stream` columns hold positions of the one
-- stream that numbers every visible change in commit order. Events are kept as the exact bytes that were signed or
-- received; SQL never looks inside them.

-- ===== The server itself =====

-- ===== Rooms, events and state =====

-- ===== Remote memberships =====

-- ===== Other servers: keys, delivery, transactions =====

-- ===== Users, devices and tokens =====

-- ===== Profiles, account data, filters, directory =====
