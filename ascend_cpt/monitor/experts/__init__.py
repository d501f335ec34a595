"""The load of the experts in a mixture of experts: records and guard."""
