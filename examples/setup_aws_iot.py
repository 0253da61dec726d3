"""Set this device up at AWS IoT Core: `arxplorer-agent cloud setup` under the name of a script.

    python setup_aws_iot.py --thing-name arxplorer-client --region us-east-1

Needs `pip install 'arxplorer-agent[aws]'` and AWS credentials; docs/aws.md says which permissions.
"""

import sys

from agent.__main__ import main

if __name__ == "__main__":
    sys.argv[1:1] = ["cloud", "setup"]
    main()
