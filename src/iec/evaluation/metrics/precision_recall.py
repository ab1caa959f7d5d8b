"""LOST: two people's mutation scripts shared one backup file (/tmp/mut.bak). Write this file again; the others are restored."""
