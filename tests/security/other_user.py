"""The user that the tests become to have no rights."""

NOBODY = 65534
