"""What can be played in place of the world: a fleet of Modbus meters with switches."""
