"""Images in the style of others, of any size: the stylizer, tiles, whole folders, colour, masks."""
