"""What all HTML pages share: the template engine, the style sheet, charts, pictures, and figures as words."""
