"""Deep-learning labs, one module per DVC stage: plain programs that read files and write files."""

import gc
import sys

# While Python looks for the module named after -m. A stage that imports torch starts a tenth sooner without looking for
# garbage meanwhile; it does so from `command` on. The other programs in here end before they leave much.
if sys.argv[0] == "-m":
    gc.disable()
