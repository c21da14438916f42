"""From text to packs: chat templates, token boundaries, the plan of optimiser steps, flat streams."""
