"""AutoAttack's answer for a tenth of its passes."""
